# One image for every workload:
#   docker build -t kfac .                                                            # CPU
#   docker build -t kfac:cuda --build-arg ACCELERATOR=cuda .                          # NVIDIA GPUs, V100 and newer
#   mkdir -p experiments
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/experiments:/experiments" kfac --workload=b3db --submission_path=submissions/kfac_reduce
# BASE is any Debian or Ubuntu whose python3 is 3.11 to 3.13. The CUDA libraries come from pip, so that a
# plain base serves GPUs too.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS base
# The base image's release decides the versions of Debian's packages.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "BASE has Python %d.%d; it needs 3.11 to 3.13" % v)'

FROM base AS libraries
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
# The pinned libraries alone, so that a change of the code leaves this layer as it is.
ARG ACCELERATOR=cpu
# Another package index, for example a mirror.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt requirements-cuda.txt requirements-prepare.txt /tmp/
RUN case "${ACCELERATOR}" in \
      cpu) echo > /tmp/requirements-cuda.txt ;; \
      cuda) ;; \
      *) echo "ACCELERATOR is ${ACCELERATOR}; it takes cpu or cuda" >&2; exit 1 ;; \
    esac \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps -r /tmp/requirements.txt -r /tmp/requirements-cuda.txt
# TensorFlow, which `prepare` alone needs; PREPARE=yes adds it.
ARG PREPARE=no
RUN if [ "${PREPARE}" = yes ]; then \
      /opt/venv/bin/pip install --no-cache-dir --no-deps -r /tmp/requirements-prepare.txt; \
    fi

FROM base
ARG UID=1000
ARG GID=1000
# The base image may have a user or a group of this number.
RUN groupadd --non-unique --gid "${GID}" kfac \
    && useradd --no-log-init --non-unique --uid "${UID}" --gid "${GID}" --create-home kfac \
    && install --directory --owner=kfac --group=kfac --mode=0777 /data /experiments /cache
COPY --from=libraries /opt/venv /opt/venv
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY submissions submissions
COPY workloads workloads
COPY tuning tuning
COPY benchmarks benchmarks
COPY presets presets
COPY results results
COPY scripts scripts
COPY tests tests
# Readable for every user, whatever the checkout's modes.
RUN chmod -R a+rX /app
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="algoperf-kfac" \
      org.opencontainers.image.description="K-FAC-expand and K-FAC-reduce as AlgoPerf submissions" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
# The commit goes into every trial's records, as the image holds no git repository. Caches are in folders that any --user
# can write.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/cache \
    MPLCONFIGDIR=/cache/matplotlib \
    ALGOPERF_KFAC_COMMIT=${COMMIT} \
    ALGOPERF_KFAC_DATA=/data \
    ALGOPERF_KFAC_EXPERIMENTS=/experiments
USER ${UID}:${GID}
VOLUME ["/data", "/experiments", "/cache"]
# A trial is healthy until it ends; its exit code says how it ended.
HEALTHCHECK NONE
ENTRYPOINT ["python3", "/app/scripts/entrypoint.py"]
CMD ["--help"]
