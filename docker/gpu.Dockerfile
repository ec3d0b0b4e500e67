# f3rm, COLMAP and ffmpeg on an NVIDIA GPU, whose host has NVIDIA's container toolkit:
#   docker build -f docker/gpu.Dockerfile -t f3rm-gpu .
#   docker run --rm -it --gpus all -p 7007:7007 -v "$PWD:/work" f3rm-gpu ns-train f3rm --data DATASET
# CUDA comes with torch's wheels. Two packages that Nerfstudio needs, fpsample and pyliblzfse, are
# compiled, and Triton compiles a small launcher, hence g++.
FROM python:3.11-slim-bookworm
# A distribution keeps one version of a package only, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        colmap ffmpeg g++ git libegl1 libgl1 libglib2.0-0 libgomp1 libusb-1.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE /f3rm/
COPY f3rm /f3rm/f3rm
RUN pip install --no-cache-dir -c /f3rm/constraints.txt "/f3rm[fast]"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
EXPOSE 7007
CMD ["f3rm", "doctor"]
