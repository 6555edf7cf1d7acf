package compose

import (
	"debug/elf"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// imageLimit is how large the image may be, and certificates what the other file in it
// takes of that, with some room.
const (
	imageLimit   = 30_000_000
	certificates = 300_000
)

func TestBinaryOfTheImageIsStaticAndSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chat-transportation")
	if err := buildAsImage(path, "linux"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB", float64(info.Size())/1e6)
	if info.Size() > imageLimit-certificates {
		t.Errorf("the binary has %d bytes: the image would be over %d", info.Size(), imageLimit)
	}
	object, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = object.Close() }()
	for _, segment := range object.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary has a segment %s: it is not static", segment.Type)
		}
	}
}

func TestDockerfile(t *testing.T) {
	text := file(t, "Dockerfile")
	for what, pattern := range map[string]string{
		"a user with a number, not root":  `(?m)^USER [1-9][0-9]*:[1-9][0-9]*$`,
		"the health check":                `(?m)^    CMD \["/chat-transportation", "healthcheck"\]$`,
		"the entry point":                 `(?m)^ENTRYPOINT \["/chat-transportation"\]$`,
		"the source as a label":           `org\.opencontainers\.image\.source="https://github\.com/`,
		"the licence as a label":          `org\.opencontainers\.image\.licenses="MIT"`,
		"a static binary":                 `CGO_ENABLED=0 `,
		"a base without anything":         `(?m)^FROM scratch AS runtime$`,
		"certificate authorities":         `(?m)^COPY --from=certificates (/etc/ssl/certs/ca-certificates\.crt) /etc/ssl/certs/ca-certificates\.crt$`,
		"the stage of the release":        `(?m)^FROM runtime AS release$`,
		"the default stage, as the last":  `(?s)\nFROM runtime\nCOPY --from=build /out/chat-transportation /chat-transportation\n$`,
		"the release's place of binaries": `(?m)^COPY \$TARGETPLATFORM/chat-transportation /chat-transportation$`,
	} {
		if !regexp.MustCompile(pattern).MatchString(text) {
			t.Errorf("the Dockerfile has not %s", what)
		}
	}
	// go.mod says which Go is needed: the image that builds must have it.
	needs := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(file(t, "go.mod"))
	if needs == nil || !strings.Contains(text, "golang:"+needs[1]+" AS build") {
		t.Errorf("go.mod needs Go %v, the Dockerfile builds with another", needs)
	}
}

func TestHealthcheckOfTheImageIsACommand(t *testing.T) {
	output, err := run(t, t.TempDir(), []string{"HTTP_ADDR=127.0.0.1:" + freePort(t)}, binary, "healthcheck")
	if err == nil || strings.Contains(output, "unknown command") {
		t.Errorf("nothing listens, and the health check says: %v %s", err, output)
	}
}

// TestNothingSecretIsInTheBuildContext: .env would be in a layer of the image.
func TestNothingSecretIsInTheBuildContext(t *testing.T) {
	ignored := strings.Fields(regexp.MustCompile(`(?m)^#.*$`).ReplaceAllString(file(t, ".dockerignore"), ""))
	for _, entry := range ignored {
		if entry == ".env" {
			return
		}
	}
	t.Errorf(".env is not in .dockerignore: %q", ignored)
}

func TestReleaseBuildsAsTheDockerfile(t *testing.T) {
	var release struct {
		Builds []struct {
			Main, Binary string
			Env          []string
			Goos, Goarch []string
			Flags        []string
			Ldflags      []string
		}
		SBOMs     []map[string]any
		Checksum  map[string]any
		DockersV2 []struct {
			Dockerfile string
			Flags      []string
			Platforms  []string
		} `yaml:"dockers_v2"`
	}
	if err := yaml.Unmarshal([]byte(file(t, ".goreleaser.yaml")), &release); err != nil {
		t.Fatal(err)
	}
	if len(release.Builds) != 1 || len(release.DockersV2) != 1 || len(release.SBOMs) == 0 || release.Checksum == nil {
		t.Fatalf("builds, image, SBOM or checksums are missing: %+v", release)
	}
	build, docker := release.Builds[0], release.DockersV2[0]
	if strings.Join(build.Goos, " ") != "linux darwin" || strings.Join(build.Goarch, " ") != "amd64 arm64" {
		t.Errorf("built for %v on %v", build.Goos, build.Goarch)
	}
	dockerfile := file(t, "Dockerfile")
	for _, part := range append(append(build.Env, build.Flags...), `-ldflags="`+build.Ldflags[0]+`"`, build.Main) {
		if !strings.Contains(dockerfile, part) {
			t.Errorf("the release builds with %s, the Dockerfile does not", part)
		}
	}
	if docker.Dockerfile != "Dockerfile" || strings.Join(docker.Flags, " ") != "--target=release" || strings.Join(docker.Platforms, " ") != "linux/amd64 linux/arm64" {
		t.Errorf("the image: %+v", docker)
	}
}
