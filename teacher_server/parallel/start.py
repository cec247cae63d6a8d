"""From a configuration to a split teacher: what cannot be split is refused, then followers are started and all load their shares."""

from __future__ import annotations

from teacher_server.config import ServerConfig
from teacher_server.models.loading import empty_teacher, load_teacher
from teacher_server.models.sharding import Shards
from teacher_server.parallel.followers import Followers, Launch, launch
from teacher_server.parallel.group import check_devices
from teacher_server.parallel.mirrored import MirroredTeacher
from teacher_server.parallel.passes import Begin

__all__ = ["split_teacher"]


def split_teacher(config: ServerConfig, launcher: Launch = launch) -> MirroredTeacher:
    """Loads a teacher over `config.tensor_parallel` processes, of which this is the first; `close` ends the others.

    This process ends, too, when one of the others does: it has no whole teacher any more.

    Args:
        config: of the server.
        launcher: starts one of the others.

    Raises:
        InvalidSetting, ModelLoadError: what `load_teacher` raises, and models and machines that cannot be split so.
    """
    shards = Shards(config.tensor_parallel)
    check_devices(shards.count, config.device)
    shards.options(empty_teacher(config.model, config.dtype, config.trust_remote_code, config.image_size).model)
    begin = Begin(
        0, shards.count, "", config.model, config.dtype, config.trust_remote_code, config.deterministic, config.threads,
        config.log_json, config.log_level,
    )  # fmt: skip
    followers = Followers(begin, config.tensor_parallel_limit_s, launcher)
    try:
        followers.start()
        share = load_teacher(config.model, config.dtype, "auto", config.trust_remote_code, spread=shards)
        teacher = MirroredTeacher(share, followers)
        _ = (
            teacher.model_hash,
            teacher.head_hash,
        )  # all put the weights together at this moment, one after the other, and never again
    except BaseException:
        followers.close()
        raise
    return teacher
