# A student: docker build -f deploy/docker/student.Dockerfile -t talking-models-student .
#
# LOCK, BASE and PIP_EXTRA_INDEX_URL as in teacher.Dockerfile.
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
COPY student_client student_client
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
# malloc and threads as in teacher.Dockerfile
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=student \
    HF_HOME=/cache/huggingface \
    TALKING_MODELS_CACHE=/cache/talking-models
RUN install --directory --mode=1777 /cache /runs
VOLUME /cache
VOLUME /runs
WORKDIR /runs
USER 10001:10001
STOPSIGNAL SIGTERM
# a student is no server: it is well while it runs
HEALTHCHECK NONE
ENTRYPOINT ["student-client"]
CMD ["--help"]
