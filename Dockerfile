# Two images. `cpu` serves anywhere; with no arguments it serves the demo, without any network:
#
#   docker build --target cpu -t nybble:cpu .
#   docker run --rm -p 8000:8000 nybble:cpu
#
# `tensorrt-llm` is NVIDIA's release container with this package on top, for amd64 and arm64 (DGX Spark):
#
#   docker build --target tensorrt-llm -t nybble:tensorrt-llm .
#
# Behind a package mirror: --secret id=pip.conf,src=$HOME/.config/pip/pip.conf (it stays out of the layers).
# For a build that can be repeated bit by bit give both images by digest: --build-arg PYTHON_IMAGE=...@sha256:...

ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-trixie
# The newest stable release; supported are 1.0 to 1.4 (docs/tensorrt-llm.md).
ARG TENSORRT_LLM_IMAGE=nvcr.io/nvidia/tensorrt-llm/release:1.2.1

# ---------------------------------------------------------------------------------------------------- cpu, built
FROM ${PYTHON_IMAGE} AS cpu-build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 SOURCE_DATE_EPOCH=315532800
# The compiler stays in this stage; its exact version is the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/docker/build-requirements.txt deploy/docker/requirements.txt deploy/docker/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --requirement deploy/docker/build-requirements.txt \
    && python3 -m venv --without-pip /opt/nybble \
    && /opt/build/bin/pip --python /opt/nybble/bin/python install --no-compile \
        --require-hashes --requirement deploy/docker/requirements.txt
COPY . .
# One wheel holds every instruction set's kernels; the right ones are chosen when it starts.
RUN PATH="/opt/build/bin:$PATH" pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheel . \
    && /opt/build/bin/pip --python /opt/nybble/bin/python install --no-compile --no-index --no-deps /wheel/*.whl \
    && /opt/build/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/nybble/sbom.cdx.json /opt/nybble/bin/python \
    && find /opt/nybble/lib -type d -name tests -path '*/numpy/*' -prune -exec rm -rf {} + \
    && cp -r examples/demo_model/checkpoints/mistral-mxfp4 /opt/nybble/demo \
    && HF_HUB_OFFLINE=1 /opt/nybble/bin/python deploy/docker/compile_imported.py \
        generate /opt/nybble/demo --engine cpu --chat "What is machine learning?" --max-tokens 8

# ---------------------------------------------------------------------------------------------------- cpu
FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nybble" \
      org.opencontainers.image.description="OpenAI-compatible inference service for FP4 checkpoints, CPU engine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=cpu-build /usr/bin/tini /usr/bin/tini
COPY --from=cpu-build /opt/nybble /opt/nybble
COPY deploy/docker/healthcheck.py deploy/docker/system_packages_sbom.py /opt/nybble/share/
# The password file is written by hand: useradd leaves the day's date in /etc/shadow.
RUN echo "nybble:x:10001:10001:nybble:/tmp:/usr/sbin/nologin" >> /etc/passwd \
    && echo "nybble:x:10001:" >> /etc/group \
    && python3 /opt/nybble/share/system_packages_sbom.py /opt/nybble/sbom.cdx.json
ENV PATH=/opt/nybble/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    HF_HUB_OFFLINE=1 \
    NYBBLE_HOST=0.0.0.0 \
    NYBBLE_PORT=8000 \
    NYBBLE_HEALTH_HOST=0.0.0.0 \
    NYBBLE_HEALTH_PORT=8001
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["/opt/nybble/bin/python", "/opt/nybble/share/healthcheck.py", "ready"]
ENTRYPOINT ["/usr/bin/tini", "--", "nybble"]
# The demo is for everybody; whoever gives arguments of their own needs --api-key-file.
CMD ["serve", "/opt/nybble/demo", "--engine", "cpu", "--served-model-name", "nybble-demo", "--insecure-no-auth"]

# ---------------------------------------------------------------------------------------------------- tensorrt-llm, built
FROM ${TENSORRT_LLM_IMAGE} AS tensorrt-llm-build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY deploy/docker/build-requirements.txt deploy/docker/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --requirement deploy/docker/build-requirements.txt
COPY . .
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN PATH="/opt/build/bin:$PATH" pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheel . \
    && python3 -m pip list --format=freeze | grep --invert-match --ignore-case '^llguidance==' > /wheel/constraints.txt

# ---------------------------------------------------------------------------------------------------- tensorrt-llm
FROM ${TENSORRT_LLM_IMAGE} AS tensorrt-llm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nybble" \
      org.opencontainers.image.description="OpenAI-compatible inference service for FP4 checkpoints, TensorRT-LLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# sshd is for mpirun over several nodes only; nothing starts it here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client openssh-server tini \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
# What the container has stays as it is: where our requirements and its versions disagree, this fails. But for
# llguidance, which TensorRT-LLM uses only as the guided decoding backend of that name (engines/grammar/release.py).
# The lock cannot hold here, for the container's versions differ from it.
COPY --from=tensorrt-llm-build /wheel /opt/nybble/wheel
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m pip install --no-cache-dir --constraint /opt/nybble/wheel/constraints.txt \
        "$(echo /opt/nybble/wheel/*.whl)[otel]" "llguidance>=1.7"
COPY deploy/docker/healthcheck.py /opt/nybble/share/
RUN groupadd --gid 10001 nybble \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/nybble --shell /bin/bash nybble \
    && install --directory --owner=10001 --group=10001 /engines
ENV PYTHONUNBUFFERED=1 \
    HOME=/home/nybble \
    HF_HUB_OFFLINE=1 \
    TRTLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    NYBBLE_HOST=0.0.0.0 \
    NYBBLE_PORT=8000 \
    NYBBLE_HEALTH_HOST=0.0.0.0 \
    NYBBLE_HEALTH_PORT=8001
WORKDIR /home/nybble
USER 10001:10001
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60m --retries=3 \
    CMD ["python3", "/opt/nybble/share/healthcheck.py", "ready"]
ENTRYPOINT ["/usr/bin/tini", "--", "nybble"]
CMD ["--help"]
