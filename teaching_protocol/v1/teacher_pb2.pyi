from teaching_protocol.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRef(_message.Message):
    __slots__ = ("session_id", "epoch")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    epoch: int
    def __init__(self, session_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("message_bytes", "rows", "tokens", "message_width", "codec_depth", "lease_s", "ranks")
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    CODEC_DEPTH_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    message_bytes: int
    rows: int
    tokens: int
    message_width: int
    codec_depth: int
    lease_s: float
    ranks: int
    def __init__(self, message_bytes: _Optional[int] = ..., rows: _Optional[int] = ..., tokens: _Optional[int] = ..., message_width: _Optional[int] = ..., codec_depth: _Optional[int] = ..., lease_s: _Optional[float] = ..., ranks: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("protocol_version", "model_name", "model_hash", "family", "layers", "widths", "entry", "exit", "vocabulary_size", "tokenizer_hash", "heads", "labels", "input_ports", "output_ports", "compressions", "dtype", "deterministic", "limits", "same_host", "parameters", "weight_bytes", "head_hash")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTHS_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUT_PORTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PORTS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSIONS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SAME_HOST_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEAD_HASH_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    model_name: str
    model_hash: str
    family: str
    layers: int
    widths: _containers.RepeatedScalarFieldContainer[int]
    entry: int
    exit: int
    vocabulary_size: int
    tokenizer_hash: str
    heads: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    input_ports: _containers.RepeatedScalarFieldContainer[str]
    output_ports: _containers.RepeatedScalarFieldContainer[str]
    compressions: _containers.RepeatedScalarFieldContainer[_tensor_pb2.Compression]
    dtype: str
    deterministic: bool
    limits: Limits
    same_host: str
    parameters: int
    weight_bytes: int
    head_hash: str
    def __init__(self, protocol_version: _Optional[int] = ..., model_name: _Optional[str] = ..., model_hash: _Optional[str] = ..., family: _Optional[str] = ..., layers: _Optional[int] = ..., widths: _Optional[_Iterable[int]] = ..., entry: _Optional[int] = ..., exit: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., tokenizer_hash: _Optional[str] = ..., heads: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ..., input_ports: _Optional[_Iterable[str]] = ..., output_ports: _Optional[_Iterable[str]] = ..., compressions: _Optional[_Iterable[_Union[_tensor_pb2.Compression, str]]] = ..., dtype: _Optional[str] = ..., deterministic: _Optional[bool] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., same_host: _Optional[str] = ..., parameters: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., head_hash: _Optional[str] = ...) -> None: ...

class OptimizerSettings(_message.Message):
    __slots__ = ("name", "weight_decay", "beta1", "beta2", "eps", "momentum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    momentum: float
    def __init__(self, name: _Optional[str] = ..., weight_decay: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., momentum: _Optional[float] = ...) -> None: ...

class SessionSettings(_message.Message):
    __slots__ = ("task", "message_width", "message_tokens", "pooling", "entry", "exit", "codec_depth", "answer_from", "inject", "optimizer", "seed", "world_size")
    TASK_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    CODEC_DEPTH_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FROM_FIELD_NUMBER: _ClassVar[int]
    INJECT_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    task: str
    message_width: int
    message_tokens: int
    pooling: str
    entry: int
    exit: int
    codec_depth: int
    answer_from: str
    inject: str
    optimizer: OptimizerSettings
    seed: int
    world_size: int
    def __init__(self, task: _Optional[str] = ..., message_width: _Optional[int] = ..., message_tokens: _Optional[int] = ..., pooling: _Optional[str] = ..., entry: _Optional[int] = ..., exit: _Optional[int] = ..., codec_depth: _Optional[int] = ..., answer_from: _Optional[str] = ..., inject: _Optional[str] = ..., optimizer: _Optional[_Union[OptimizerSettings, _Mapping]] = ..., seed: _Optional[int] = ..., world_size: _Optional[int] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("student", "settings", "resume", "state", "call_id")
    STUDENT_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    student: str
    settings: SessionSettings
    resume: str
    state: bytes
    call_id: str
    def __init__(self, student: _Optional[str] = ..., settings: _Optional[_Union[SessionSettings, _Mapping]] = ..., resume: _Optional[str] = ..., state: _Optional[bytes] = ..., call_id: _Optional[str] = ...) -> None: ...

class EnrollReply(_message.Message):
    __slots__ = ("session", "lease_s", "step", "parameters", "settings")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    lease_s: float
    step: int
    parameters: int
    settings: SessionSettings
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., lease_s: _Optional[float] = ..., step: _Optional[int] = ..., parameters: _Optional[int] = ..., settings: _Optional[_Union[SessionSettings, _Mapping]] = ...) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("session", "call_id", "outputs", "backward_follows", "grad_inputs", "inputs", "compression", "rank")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    GRAD_INPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    call_id: str
    outputs: _containers.RepeatedScalarFieldContainer[str]
    backward_follows: bool
    grad_inputs: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.MessageMap[str, _tensor_pb2.Tensor]
    compression: _tensor_pb2.Compression
    rank: int
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., call_id: _Optional[str] = ..., outputs: _Optional[_Iterable[str]] = ..., backward_follows: _Optional[bool] = ..., grad_inputs: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ..., compression: _Optional[_Union[_tensor_pb2.Compression, str]] = ..., rank: _Optional[int] = ...) -> None: ...

class ForwardReply(_message.Message):
    __slots__ = ("queue_s", "compute_s", "outputs")
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    compute_s: float
    outputs: _containers.MessageMap[str, _tensor_pb2.Tensor]
    def __init__(self, queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., outputs: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ...) -> None: ...

class BackwardRequest(_message.Message):
    __slots__ = ("session", "call_id", "forward_id", "grads", "outputs", "grad_inputs", "inputs", "compression", "rank")
    class GradsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    FORWARD_ID_FIELD_NUMBER: _ClassVar[int]
    GRADS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    GRAD_INPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    call_id: str
    forward_id: str
    grads: _containers.MessageMap[str, _tensor_pb2.Tensor]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    grad_inputs: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.MessageMap[str, _tensor_pb2.Tensor]
    compression: _tensor_pb2.Compression
    rank: int
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., call_id: _Optional[str] = ..., forward_id: _Optional[str] = ..., grads: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ..., outputs: _Optional[_Iterable[str]] = ..., grad_inputs: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ..., compression: _Optional[_Union[_tensor_pb2.Compression, str]] = ..., rank: _Optional[int] = ...) -> None: ...

class BackwardReply(_message.Message):
    __slots__ = ("queue_s", "compute_s", "grads")
    class GradsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    GRADS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    compute_s: float
    grads: _containers.MessageMap[str, _tensor_pb2.Tensor]
    def __init__(self, queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., grads: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("session", "step", "lr", "grad_scale", "max_grad_norm", "rank", "rows")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    GRAD_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    step: int
    lr: float
    grad_scale: float
    max_grad_norm: float
    rank: int
    rows: int
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., step: _Optional[int] = ..., lr: _Optional[float] = ..., grad_scale: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., rank: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class StepReply(_message.Message):
    __slots__ = ("step", "grad_norm")
    STEP_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    step: int
    grad_norm: float
    def __init__(self, step: _Optional[int] = ..., grad_norm: _Optional[float] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ...) -> None: ...

class ExportReply(_message.Message):
    __slots__ = ("state", "step")
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    step: int
    def __init__(self, state: _Optional[bytes] = ..., step: _Optional[int] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("session", "state", "call_id", "step")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    state: bytes
    call_id: str
    step: int
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., state: _Optional[bytes] = ..., call_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class ImportReply(_message.Message):
    __slots__ = ("step", "session")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    step: int
    session: SessionRef
    def __init__(self, step: _Optional[int] = ..., session: _Optional[_Union[SessionRef, _Mapping]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("lease_s",)
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    lease_s: float
    def __init__(self, lease_s: _Optional[float] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
