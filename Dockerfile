# docker build .                  the CPU's image; needs BuildKit
# docker build --target cuda .    with the CUDA device module
# The build reads, where they are given as secrets, apt.conf, pip.conf and certificates (at /run/secrets/certificates, for
# pip.conf to name): whatever reaches package indices from where it runs.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS package
WORKDIR /src
COPY scripts/setup scripts/fetch-libtorch scripts/
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90secret \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=certificates \
    scripts/setup deb && scripts/fetch-libtorch
COPY . .
RUN --mount=type=cache,target=/root/.cache/ccache make deb && mv build/*.deb /ditserve.deb

FROM ${BASE} AS runtime
# Not pinned: the distribution's latest versions have its fixes.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90secret \
    --mount=type=bind,from=package,source=/ditserve.deb,target=/ditserve.deb \
    apt-get update && apt-get install -y --no-install-recommends tini /ditserve.deb && \
    rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*

FROM package AS bill
RUN --mount=type=bind,from=runtime,target=/runtime scripts/sbom /runtime >/sbom.json

FROM ${BASE} AS cuda-package
WORKDIR /src
COPY scripts/setup scripts/fetch-nvcc scripts/
# The wheel's own requirements are the CUDA libraries of the versions that it was built with.
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90secret \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=certificates \
    scripts/setup deb && python3 -m pip install --no-cache-dir --target /libtorch torch==2.13.0 && \
    find /libtorch -maxdepth 1 -name '*.dist-info' ! -name 'torch-*' ! -name 'nvidia_*' -exec rm -r {} + && \
    scripts/fetch-nvcc
COPY . .
RUN --mount=type=cache,target=/root/.cache/ccache \
    LIBTORCH=/libtorch/torch make deb BUILD=cuda && mv build/*.deb /ditserve.deb
# LibTorch looks for them in its own folder too.
WORKDIR /libtorch
RUN mkdir /cuda && \
    cp torch/lib/libtorch_cuda.so torch/lib/libc10_cuda.so torch/lib/libtorch_nvshmem.so nvidia/*/lib/*.so* /cuda/

FROM ${BASE} AS cuda-runtime
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/90secret \
    --mount=type=bind,from=cuda-package,source=/ditserve.deb,target=/ditserve.deb \
    apt-get update && apt-get install -y --no-install-recommends tini /ditserve.deb && \
    rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=cuda-package /cuda/ /usr/lib/ditserve/

FROM cuda-package AS cuda-bill
WORKDIR /src
RUN --mount=type=bind,from=cuda-runtime,target=/runtime scripts/sbom /runtime >/sbom.json

FROM cuda-runtime AS cuda
COPY --from=cuda-bill /sbom.json /usr/share/ditserve/sbom.cdx.json
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ditserve" \
      org.opencontainers.image.description="Forward passes of diffusion transformers over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-3-Clause AND LicenseRef-NVIDIA-EULA" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
# A probe needs no model. Arguments of `docker run` take CMD's place: whoever gives some repeats --config.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m \
  CMD ["ditserve", "--config", "/etc/ditserve/ditserve.yaml", "--probe"]
ENTRYPOINT ["tini", "--", "ditserve"]
CMD ["--config", "/etc/ditserve/ditserve.yaml"]

FROM runtime AS cpu
COPY --from=bill /sbom.json /usr/share/ditserve/sbom.cdx.json
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ditserve" \
      org.opencontainers.image.description="Forward passes of diffusion transformers over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-3-Clause AND LicenseRef-NVIDIA-EULA" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
# A probe needs no model. Arguments of `docker run` take CMD's place: whoever gives some repeats --config.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m \
  CMD ["ditserve", "--config", "/etc/ditserve/ditserve.yaml", "--probe"]
ENTRYPOINT ["tini", "--", "ditserve"]
CMD ["--config", "/etc/ditserve/ditserve.yaml"]
