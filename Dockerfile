# A CPU image that serves a detector (docs/serving.md):
#
#   docker build -t detrlab .
#   docker run --rm -p 127.0.0.1:8000:8000 detrlab
#   docker run --rm -v "$PWD:/data:ro" -p 127.0.0.1:8000:8000 detrlab \
#       detrlab serve /data/last.safetensors --host 0.0.0.0
#
# PIP_ARGS can name an index of CPU-only torch wheels, which saves gigabytes.
FROM python:3.12-slim
ARG PIP_ARGS=""
WORKDIR /detrlab
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-cache-dir ".[serve]" $PIP_ARGS && useradd --create-home detrlab
USER detrlab
WORKDIR /home/detrlab
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=3)"
CMD ["detrlab", "serve", "--host", "0.0.0.0"]
