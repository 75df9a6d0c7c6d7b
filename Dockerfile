# Serves pretrained/ at port 8000:  docker build -t nanochat-omni . && docker run --rm --read-only \
#   -p 127.0.0.1:8000:8000 nanochat-omni
# Your own run: add `-v ./out/mine:/mine:ro` before the image's name and --ckpt=/mine behind it.
# A GPU: --build-arg BASE= an image with CUDA and Python 3.11 or newer; docker run --gpus=all.
# On x86 pip's torch brings CUDA: --build-arg PIP_EXTRA_INDEX_URL= PyTorch's index for CPUs is smaller.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG PIP_EXTRA_INDEX_URL
WORKDIR /app
COPY requirements.txt .
RUN python -m pip install --no-cache-dir -r requirements.txt
ENV NANOCHAT_OMNI_CACHE=/app/cache PYTHONDONTWRITEBYTECODE=1 TMPDIR=/dev/shm
COPY *.py chat.html ./
COPY assets assets
RUN python -c "from audio import load_encoder; load_encoder()"
COPY pretrained pretrained
USER 65534
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["python", "serve.py", "--host=0.0.0.0"]
