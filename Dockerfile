# Serves ONNX variants, without torch. `--build-arg BACKEND=openvino` is for those of OpenVINO.
FROM python:3.11-slim AS build
ARG BACKEND=onnxruntime
COPY constraints.txt docs/deploy/requirements.txt /
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir \
        -c /constraints.txt -r /requirements.txt "$BACKEND"
COPY pyproject.toml README.md LICENSE /xopt/
COPY face /xopt/face
COPY cli /xopt/cli
COPY optimize /xopt/optimize
COPY runtime /xopt/runtime
COPY models/demo /xopt/models/demo
RUN pip --python /venv/bin/python install --no-cache-dir --no-deps /xopt

FROM python:3.11-slim
COPY --from=build /venv /venv
# OpenVINO does not start where nobody has a home.
ENV PATH=/venv/bin:$PATH HOME=/tmp
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --start-period=2m CMD ["python", "-c", "import urllib.request as web; \
web.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["xopt", "serve", "/model", "--host", "0.0.0.0"]
