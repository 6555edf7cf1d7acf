package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joho/godotenv"
	"github.com/sethvargo/go-envconfig"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit"
)

const secret = "s3cr3t-s3cr3t-s3cr3t-s3cr3t-s3cr3t"

func base(more map[string]string) envconfig.Lookuper {
	env := map[string]string{"KEY": secret, "RABBITMQ_URL": "amqp://user:" + secret + "@localhost/"}
	for name, value := range more {
		env[name] = value
	}
	return envconfig.MapLookuper(env)
}

func TestDefaultsAreTheContracts(t *testing.T) {
	cfg, err := From(base(nil))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Demo || cfg.HTTP.Addr != ":8001" || cfg.HTTP.RootPath != "/transportation" || cfg.HTTP.AdminAddr != "" ||
		cfg.Auth.Token.Algorithm != "HS256" || cfg.PassPolicy.Length != 32 || cfg.PassPolicy.Lifetime != 30*time.Second ||
		cfg.PassPolicy.RequestsPerMinute != 60 || cfg.ConnectLimits.PassFailuresPerMinute != 0 ||
		cfg.Rabbit.WebsocketsExchange != "websockets" || cfg.Rabbit.DatabaseExchange != "database" ||
		cfg.Rabbit.Prefetch != 16 || cfg.Rabbit.InstancePrefetch != 1024 || cfg.Rabbit.Scope != rabbit.ScopeUser ||
		cfg.Rabbit.AppID != "transportation_backend" || cfg.ConfirmTimeout != 5*time.Second ||
		!slices.Equal(cfg.HTTP.CORSOrigins, []string{"http://localhost", "http://localhost:3000"}) ||
		cfg.Hub.MaxMessageBytes != 65536 || cfg.Hub.PingInterval != 25*time.Second || cfg.Hub.WriteTimeout != 10*time.Second ||
		cfg.Hub.SendQueue != 64 || cfg.ConnectLimits.MaxConnections != 0 || cfg.Hub.MaxConnectionsPerUser != 16 ||
		!cfg.Hub.CloseOnTokenExpiry || cfg.Hub.MessagesPerSecond != 20 || cfg.Hub.MessagesBurst != 40 ||
		cfg.ConnectLimits.ConnectsPerSecond != 0 || cfg.Hub.DrainWindow != 2*time.Second || cfg.Hub.CloseWhenFull ||
		cfg.Shutdown.Total != 20*time.Second || cfg.Log.Level.String() != "info" || cfg.Log.Console {
		t.Errorf("a default differs from the contract: %+v", cfg)
	}
}

func TestNothingSetIsDemoMode(t *testing.T) {
	cfg, err := From(envconfig.MapLookuper(map[string]string{"KEY": " ", "ALGORITHM": "RS256", "REDIS_URL": "redis://localhost"}))
	if err != nil {
		t.Fatal(err)
	}
	other, err := From(envconfig.MapLookuper(nil))
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.Demo || !cfg.Docs.Demo || cfg.Auth.RedisURL != "" || cfg.Auth.Token.Algorithm != "HS256" || len(cfg.Auth.Token.Key) < 32 {
		t.Errorf("demo %t, algorithm %s, key of %d characters", cfg.Demo, cfg.Auth.Token.Algorithm, len(cfg.Auth.Token.Key))
	}
	if cfg.Auth.Token.Key == other.Auth.Token.Key {
		t.Error("the key of demo mode is not random")
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name, value string
		says        string
	}{
		{"KEY", "", "KEY is required"},
		{"RABBITMQ_URL", "", "RABBITMQ_URL is required"},
		{"RABBITMQ_URL", "http://localhost", "RABBITMQ_URL must be amqp://"},
		{"RABBITMQ_URL", "amqp://localhost,amqp://u:" + secret + "@ho st", "number 2 is none"},
		{"REDIS_URL", "amqp://:" + secret + "@localhost", "REDIS_URL must be a URL"},
		{"RABBITMQ_URL", " , ", "RABBITMQ_URL must be amqp://"},
		{"RABBITMQ_URL", "amqp://localhost:99999/", "number 1 is none"},
		{"ALGORITHM", "none", "ALGORITHM must be one of HS256"},
		{"ALGORITHM", "RS256", "KEY and ALGORITHM do not go together"},
		{"KEY_FILE", "/nowhere", "KEY_FILE must not be set together with KEY"},
		{"HTTP_ADDR", "8001", "HTTP_ADDR must be host:port"},
		{"ADMIN_ADDR", ":8001", "ADMIN_ADDR must differ"},
		{"ROOT_PATH", "transportation", "ROOT_PATH must be a path"},
		{"ROOT_PATH", "/a/{b}", "ROOT_PATH must be a path"},
		{"CONNECTION_PASS_LENGTH", "15", "CONNECTION_PASS_LENGTH must be from 16"},
		{"ROOT_PATH", "/docs/v1", "ROOT_PATH must not begin with a route"},
		{"SERVICE_NAME", "\xff\xfe", "SERVICE_NAME must be 1 to 255 bytes of UTF-8"},
		{"DATABASE_EXCHANGE_NAME", "\xff", "DATABASE_EXCHANGE_NAME must be the name"},
		{"CONNECTION_PASS_LENGTH", "0x20", "CONNECTION_PASS_LENGTH must be a whole number"},
		{"CONNECTION_PASS_LENGTH", "1_6", "CONNECTION_PASS_LENGTH must be a whole number"},
		{"WS_MAX_CONNECTIONS", "3000000000", "WS_MAX_CONNECTIONS must be from 0 to 2147483647"},
		{"CONNECTION_PASS_LENGTH", "x", "CONNECTION_PASS_LENGTH must be a whole number"},
		{"CONNECTION_PASS_EXPIRATION_TIME", "0", "CONNECTION_PASS_EXPIRATION_TIME must be from 1"},
		{"CHANNEL_PREFETCH_MESSAGES_COUNT", "0", "CHANNEL_PREFETCH_MESSAGES_COUNT must be from 1 to 65535"},
		{"CHANNEL_PREFETCH_MESSAGES_COUNT", "65536", "CHANNEL_PREFETCH_MESSAGES_COUNT must be from 1 to 65535"},
		{"INSTANCE_PREFETCH_COUNT", "-1", "INSTANCE_PREFETCH_COUNT must be"},
		{"QUEUE_SCOPE", "node", "QUEUE_SCOPE must be user or instance"},
		{"PUBLISH_CONFIRM_TIMEOUT", "5", "PUBLISH_CONFIRM_TIMEOUT must be a duration"},
		{"PUBLISH_CONFIRM_TIMEOUT", "0s", "PUBLISH_CONFIRM_TIMEOUT must be from"},
		{"CORS_ORIGINS", "*", "CORS_ORIGINS must be origins"},
		{"CORS_ORIGINS", "https://a.example/path", "CORS_ORIGINS must be origins"},
		{"TRUSTED_PROXIES", "10.0.0.0/33", "TRUSTED_PROXIES must be CIDRs"},
		{"WS_MAX_MESSAGE_BYTES", "0", "WS_MAX_MESSAGE_BYTES must be"},
		{"WS_PING_INTERVAL", "0s", "WS_PING_INTERVAL must be"},
		{"WS_WRITE_TIMEOUT", "-1s", "WS_WRITE_TIMEOUT must be"},
		{"WS_SEND_QUEUE", "0", "WS_SEND_QUEUE must be from 1"},
		{"WS_MAX_CONNECTIONS", "-1", "WS_MAX_CONNECTIONS must be at least 0"},
		{"WS_MESSAGES_PER_SECOND", "NaN", "WS_MESSAGES_PER_SECOND must be"},
		{"WS_MESSAGES_BURST", "0", "WS_MESSAGES_BURST must be at least 1"},
		{"WS_CLOSE_ON_TOKEN_EXPIRY", "maybe", "WS_CLOSE_ON_TOKEN_EXPIRY must be true or false"},
		{"SHUTDOWN_TIMEOUT", "1ms", "SHUTDOWN_TIMEOUT must be"},
		{"SHUTDOWN_DRAIN_WINDOW", "-1s", "SHUTDOWN_DRAIN_WINDOW must be"},
		{"WEBSOCKETS_EXCHANGE_NAME", "amq.direct", "WEBSOCKETS_EXCHANGE_NAME must be"},
		{"DATABASE_EXCHANGE_NAME", "websockets", "DATABASE_EXCHANGE_NAME must differ"},
		{"OPENTELEMETRY_COLLECTOR_URL", "grpc://localhost:4317", "OPENTELEMETRY_COLLECTOR_URL must be http://"},
		{"OPENTELEMETRY_COLLECTOR_URL", "http://u:" + secret + "@localhost:4317", "OPENTELEMETRY_COLLECTOR_URL must be http://"},
		{"OPENTELEMETRY_COLLECTOR_URL", "http://localhost:4317/v1/metrics", "OPENTELEMETRY_COLLECTOR_URL must be http://"},
		{"OPENTELEMETRY_COLLECTOR_URL", "http://localhost:4317?token=" + secret, "OPENTELEMETRY_COLLECTOR_URL must be http://"},
		{"OPENTELEMETRY_COLLECTOR_URL", "localhost:otlp?", "OPENTELEMETRY_COLLECTOR_URL must be http://"},
		{"OPENTELEMETRY_COLLECTOR_URL", "https://", "OPENTELEMETRY_COLLECTOR_URL must be http://"},
		{"OPENTELEMETRY_COLLECTOR_URL", "localhost:99999", "OPENTELEMETRY_COLLECTOR_URL must be http://"},
		{"OPENTELEMETRY_TRACES", "true", "OPENTELEMETRY_TRACES needs OPENTELEMETRY_COLLECTOR_URL"},
		{"OPENTELEMETRY_TRACES", "yes!", "OPENTELEMETRY_TRACES must be true or false"},
		{"LOG_LEVEL", "loud", "LOG_LEVEL must be"},
		{"LOG_FORMAT", "xml", "LOG_FORMAT must be"},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			_, err := From(base(map[string]string{c.name: c.value}))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want it to say %q", err, c.says)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows a secret: %v", err)
			}
			if lines := strings.Count(err.Error(), "\n"); lines != 1 {
				t.Errorf("one fault takes %d lines: %v", lines, err)
			}
		})
	}
}

// Text that other programs write in more than one way means the same.
func TestNotations(t *testing.T) {
	cfg, err := From(base(map[string]string{
		"CONNECTION_PASS_EXPIRATION_TIME": "030",
		"CORS_ORIGINS":                    "HTTPS://A.example:443, http://b.example:80, https://c.example:80",
		"TRUSTED_PROXIES":                 "::ffff:127.0.0.0/104, 10.1.2.3/8, 2001:db8::/32, ::ffff:192.0.2.1",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.PassPolicy.Lifetime != 30*time.Second {
		t.Errorf("030 seconds are %s", cfg.PassPolicy.Lifetime)
	}
	if got, want := strings.Join(cfg.HTTP.CORSOrigins, " "), "https://a.example http://b.example https://c.example:80"; got != want {
		t.Errorf("origins are %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(cfg.HTTP.TrustedProxies), "[127.0.0.0/8 10.0.0.0/8 2001:db8::/32 192.0.2.1/32]"; got != want {
		t.Errorf("proxies are %s, want %s", got, want)
	}
}

func TestFaultsOfTheKeyHideNoOthers(t *testing.T) {
	for _, variables := range []map[string]string{
		{"KEY": "", "KEY_FILE": "/nowhere"}, {"KEY_FILE": "/nowhere"},
	} {
		variables["ALGORITHM"] = "none"
		_, err := From(base(variables))
		if err == nil || !strings.Contains(err.Error(), "KEY_FILE ") || !strings.Contains(err.Error(), "ALGORITHM ") {
			t.Errorf("with %v: %v", variables, err)
		}
	}
}

func TestAllFaultsAreListedAtOnce(t *testing.T) {
	_, err := From(base(map[string]string{"LOG_LEVEL": "loud", "WS_SEND_QUEUE": "many", "WS_PING_INTERVAL": "often", "QUEUE_SCOPE": "x", "KEY": "",
		"ALGORITHM": "none", "WS_MESSAGES_PER_SECOND": "x", "WS_MESSAGES_BURST": "-1"}))
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{"LOG_LEVEL", "WS_SEND_QUEUE", "WS_PING_INTERVAL", "QUEUE_SCOPE", "KEY", "ALGORITHM", "WS_MESSAGES_PER_SECOND", "WS_MESSAGES_BURST"} {
		if !strings.Contains(err.Error(), "\n  "+name+" ") {
			t.Errorf("%s is not in:\n%v", name, err)
		}
	}
}

func TestCollector(t *testing.T) {
	for text, want := range map[string]string{
		"":                        "",
		"http://collector:4317":   "http://collector:4317",
		"http://collector:4317/":  "http://collector:4317",
		"collector:4318":          "http://collector:4318",
		"collector":               "http://collector:4317",
		"[::1]:4317":              "http://[::1]:4317",
		"https://otlp.example":    "https://otlp.example:443",
		"https://otlp.example:1/": "https://otlp.example:1",
	} {
		cfg, err := From(base(map[string]string{"OPENTELEMETRY_COLLECTOR_URL": text, "SERVICE_NAME": "gateway", "HTTP_ADDR": ":8002"}))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if cfg.Push.CollectorURL != want || cfg.Tracing.CollectorURL != want || cfg.Tracing.Enabled {
			t.Errorf("%q: metrics go to %q, spans to %q, enabled %t", text, cfg.Push.CollectorURL, cfg.Tracing.CollectorURL, cfg.Tracing.Enabled)
		}
		if cfg.Push.ServiceName != "gateway" || cfg.Tracing.ServiceName != "gateway" ||
			!strings.HasSuffix(cfg.Push.InstanceID, ":8002") || cfg.Tracing.InstanceID != cfg.Push.InstanceID {
			t.Errorf("%q: %+v, %+v", text, cfg.Push, cfg.Tracing)
		}
	}
	cfg, err := From(base(map[string]string{"OPENTELEMETRY_COLLECTOR_URL": "collector:4317", "OPENTELEMETRY_TRACES": "true"}))
	if err != nil || !cfg.Tracing.Enabled || cfg.Tracing.DatabaseExchange != "database" || cfg.Tracing.WebsocketsExchange != "websockets" {
		t.Errorf("%+v, %v", cfg.Tracing, err)
	}
}

func TestKeyFile(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := From(base(map[string]string{"KEY": "", "KEY_FILE": file, "ALGORITHM": "ES256"})); err != nil {
		t.Error(err)
	}
	if _, err := From(base(map[string]string{"KEY": "", "KEY_FILE": file, "ALGORITHM": "ES384"})); err == nil {
		t.Error("a P-256 key is taken for ES384")
	}
	if _, err := From(base(map[string]string{"KEY": "", "KEY_FILE": file + "x", "ALGORITHM": "ES256"})); err == nil || !strings.Contains(err.Error(), "KEY_FILE can't be read") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestEmptyIsUnsetButForTheTwoThatSayOtherwise(t *testing.T) {
	empty := make(map[string]string)
	for _, variable := range Variables() {
		if variable.Name != "KEY" && variable.Name != "RABBITMQ_URL" {
			empty[variable.Name] = ""
		}
	}
	cfg, err := From(base(empty))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.HTTP.RootPath != "" || len(cfg.HTTP.CORSOrigins) != 0 {
		t.Errorf("root path %q, origins %q", cfg.HTTP.RootPath, cfg.HTTP.CORSOrigins)
	}
	if cfg.PassPolicy.Length != 32 || cfg.HTTP.Addr != ":8001" {
		t.Error("an empty variable hides a default")
	}
}

func TestPartsOfTheShutdownAddUp(t *testing.T) {
	for _, timeout := range []string{"100ms", "1s", "20s", "1h"} {
		cfg, err := From(base(map[string]string{"SHUTDOWN_TIMEOUT": timeout, "SHUTDOWN_DRAIN_WINDOW": "30m"}))
		if err != nil {
			t.Fatal(err)
		}
		var sum time.Duration
		for _, part := range cfg.Shutdown.parts() {
			if part <= 0 {
				t.Errorf("%s: an empty slice in %v", timeout, cfg.Shutdown)
			}
			sum += part
		}
		if sum >= cfg.Shutdown.Total || cfg.Hub.DrainWindow > cfg.Shutdown.Drain/2 {
			t.Errorf("%s: the slices take %s, the window %s of %s", timeout, sum, cfg.Hub.DrainWindow, cfg.Shutdown.Drain)
		}
	}
}

func TestPartOfTheConfiguration(t *testing.T) {
	lookup := envconfig.MapLookuper(map[string]string{"KEY": secret, "LOG_LEVEL": "loud"})
	cfg, err := From(lookup, "KEY", "ALGORITHM", "KEY_FILE")
	if err != nil || cfg.Auth.Token.Key != secret {
		t.Errorf("key of %d characters, %v", len(cfg.Auth.Token.Key), err)
	}
}

func TestExampleFile(t *testing.T) {
	file := filepath.Join("..", "..", ".env.example")
	values, err := godotenv.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := From(envconfig.MapLookuper(values)); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	for _, match := range regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`).FindAllStringSubmatch(string(text), -1) {
		if _, twice := documented[match[1]]; twice {
			t.Errorf("%s is there twice", match[1])
		}
		documented[match[1]] = match[2]
	}
	for _, variable := range Variables() {
		value, found := documented[variable.Name]
		if !found {
			t.Errorf("%s is not in .env.example", variable.Name)
		}
		if variable.Default != "" && value != variable.Default {
			t.Errorf("%s shows %q, the default is %q", variable.Name, value, variable.Default)
		}
		delete(documented, variable.Name)
	}
	for name := range documented {
		if !slices.Contains(composeOnly, name) {
			t.Errorf("%s is in .env.example and nothing reads it", name)
		}
	}
}

// composeOnly are the names of .env.example that only compose.yaml reads.
var composeOnly = []string{
	"RABBITMQ_USER", "RABBITMQ_PASSWORD", "RABBITMQ_BACKEND_USER", "RABBITMQ_BACKEND_PASSWORD",
	"RABBITMQ_ADMIN_USER", "RABBITMQ_ADMIN_PASSWORD", "REDIS_PASSWORD", "GRAFANA_USER", "GRAFANA_PASSWORD", "BIND_ADDRESS",
}
