# The teacher: docker build -f deploy/docker/teacher.Dockerfile -t talking-models-teacher .
#
# For GPUs: --build-arg LOCK=requirements-cuda.lock, whose torch brings CUDA's libraries; the driver comes from the host. BASE may be
# a CUDA image with Python 3.11 instead. torch's build for CPUs is on an index of its own: name it by PIP_EXTRA_INDEX_URL.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG LOCK=requirements.lock
ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /src
RUN python3 -m venv /opt/venv
COPY deploy/docker/${LOCK} requirements.lock
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY teaching_protocol teaching_protocol
COPY command_config command_config
COPY task_data task_data
COPY student_models student_models
COPY teacher_server teacher_server
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
# Malloc is set by the command itself (teaching_protocol/memory.py), which any MALLOC_* here would turn off. Threads: give OMP_NUM_THREADS
# the container's share of cores; torch would take all of the host's.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=teacher \
    HF_HOME=/cache/huggingface \
    TALKING_MODELS_CACHE=/cache/talking-models
RUN install --directory --mode=1777 /cache
VOLUME /cache
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "teacher_server.probe", "127.0.0.1:50051"]
ENTRYPOINT ["teacher-server"]
CMD ["serve", "--config", "/etc/talking-models/teacher.yaml"]
