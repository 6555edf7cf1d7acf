# syntax=docker/dockerfile:1

# The image of the service: one static binary and CA certificates, no shell, no root.
# "docker build ." compiles it; the release workflow brings binaries that are compiled
# already and takes the target "release". Both end in the same stage, "runtime".

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH
# The version comes from git, which the build context holds. Where .git is only a
# pointer (a worktree): --build-arg BUILDVCS=false.
ARG BUILDVCS=auto
# The tags leave out what is never reached: gRPC's debug pages, with the templates that
# they bring, and HTTP/2 in net/http, which needs a TLS listener (gRPC has its own).
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -buildvcs=$BUILDVCS -tags=grpcnotrace,nethttpomithttp2 -trimpath -ldflags="-s -w" -o /out/chat-transportation ./cmd/chat-transportation

FROM gcr.io/distroless/static-debian12:nonroot AS certificates

# Nothing but the two files: distroless would add time zones and a list of users, of
# which the service needs neither, to an image that is to stay below 30 MB.
FROM scratch AS runtime
COPY --from=certificates /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
LABEL org.opencontainers.image.title="chat-transportation" \
      org.opencontainers.image.description="A WebSocket gateway for RabbitMQ" \
      org.opencontainers.image.source="https://github.com/aleksandrshaulskyi/chat-transportation" \
      org.opencontainers.image.documentation="https://github.com/aleksandrshaulskyi/chat-transportation/blob/main/docs/operations.md" \
      org.opencontainers.image.licenses="MIT"
# By number, so that Kubernetes' runAsNonRoot can check it.
USER 65532:65532
EXPOSE 8001
# Ready, not only alive: 0 once the broker takes messages and the pass store answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["/chat-transportation", "healthcheck"]
ENTRYPOINT ["/chat-transportation"]

FROM runtime AS release
ARG TARGETPLATFORM
COPY $TARGETPLATFORM/chat-transportation /chat-transportation

FROM runtime
COPY --from=build /out/chat-transportation /chat-transportation
