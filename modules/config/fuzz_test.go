package config

import (
	"maps"
	"math"
	"net"
	"net/url"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
	"github.com/joho/godotenv"
	"github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap/zapcore"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit"
)

// secretive are the variables whose value may hold a secret.
var secretive = []string{"KEY", "RABBITMQ_URL", "REDIS_URL", "OPENTELEMETRY_COLLECTOR_URL"}

// checkOutcome demands that there is either an error, fit to be shown, or a configuration
// that holds what the wire contract promises.
func checkOutcome(t *testing.T, cfg Config, err error) {
	t.Helper()
	if err == nil {
		checkSound(t, cfg)
		return
	}
	if !reflect.ValueOf(cfg).IsZero() {
		t.Errorf("a configuration and an error: %v", err)
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("the error shows a secret: %v", err)
	}
	lines := strings.Split(err.Error(), "\n")
	known := make([]string, 0, len(lines))
	for _, described := range Variables() {
		known = append(known, described.Name)
	}
	if len(lines) < 2 || lines[0] != "the configuration is not valid:" {
		t.Errorf("the error is %q", err)
	}
	for _, line := range lines[1:] {
		text, indented := strings.CutPrefix(line, "  ")
		name, _, _ := strings.Cut(text, " ")
		if !indented || !slices.Contains(known, name) && name != ".env" {
			t.Errorf("the line %q names no variable", line)
		}
	}
	if !utf8.ValidString(err.Error()) || strings.ContainsFunc(err.Error(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Errorf("the error can't be printed: %q", err)
	}
}

// checkSound holds the configuration to the bounds of the wire contract, section 5, and
// to what the modules make of it.
func checkSound(t *testing.T, cfg Config) {
	t.Helper()
	demand := func(holds bool, what string) {
		t.Helper()
		if !holds {
			t.Errorf("taken although not true: %s", what)
		}
	}
	_, err := authpass.NewVerifier(cfg.Auth.Token)
	demand(err == nil, "KEY fits ALGORITHM")
	demand(cfg.PassPolicy.Length >= 16 && cfg.PassPolicy.Length <= 512, "a pass has 16 to 512 characters")
	demand(cfg.PassPolicy.Lifetime >= time.Second && cfg.PassPolicy.Lifetime%time.Second == 0, "a pass is good for whole seconds")
	for _, limit := range []int{
		cfg.PassPolicy.RequestsPerMinute, cfg.ConnectLimits.MaxConnections, cfg.ConnectLimits.ConnectsPerSecond,
		cfg.ConnectLimits.PassFailuresPerMinute, cfg.Hub.MaxConnectionsPerUser,
	} {
		demand(limit >= 0 && limit <= math.MaxInt32, "a limit is 0 or more")
	}
	demand(cfg.Hub.MaxMessageBytes > 0 && cfg.Hub.SendQueue > 0, "a frame and a delivery find room")
	demand(cfg.Hub.MessagesPerSecond >= 0 && !math.IsInf(cfg.Hub.MessagesPerSecond, 0), "a rate is a number")
	demand(cfg.Hub.MessagesPerSecond == 0 || cfg.Hub.MessagesBurst > 0, "some message is let through")
	demand(cfg.ConfirmTimeout > 0 && cfg.Hub.ConfirmTimeout == cfg.ConfirmTimeout && cfg.Hub.PingInterval > 0 && cfg.Hub.WriteTimeout > 0, "times are positive")
	demand(cfg.Rabbit.Prefetch > 0 && cfg.Rabbit.Prefetch <= math.MaxUint16 && cfg.Rabbit.InstancePrefetch > 0 && cfg.Rabbit.InstancePrefetch <= math.MaxUint16, "AMQP can write the prefetch")
	demand(cfg.Rabbit.Scope == rabbit.ScopeUser || cfg.Rabbit.Scope == rabbit.ScopeInstance, "the scope is known")
	for _, name := range []string{cfg.Rabbit.DatabaseExchange, cfg.Rabbit.WebsocketsExchange, cfg.Rabbit.AppID} {
		demand(name != "" && len(name) <= 255 && utf8.ValidString(name), "AMQP can write the name")
	}
	demand(cfg.Rabbit.DatabaseExchange != cfg.Rabbit.WebsocketsExchange, "the exchanges are two")
	demand(cfg.Demo == (len(cfg.Rabbit.URLs) == 0), "there is a broker")
	for _, text := range cfg.Rabbit.URLs {
		_, err := amqp091.ParseURI(text)
		demand(err == nil, "the broker's URL is one")
	}
	if cfg.Auth.RedisURL != "" {
		_, err := redis.ParseURL(cfg.Auth.RedisURL)
		demand(err == nil && !cfg.Demo, "the URL of Redis is one")
	}
	for _, address := range []string{cfg.HTTP.Addr, cfg.HTTP.AdminAddr} {
		_, err := net.ResolveTCPAddr("tcp", address[max(strings.LastIndexByte(address, ':'), 0):])
		demand(err == nil, "the port is one")
	}
	demand(cfg.HTTP.Addr != "" && cfg.HTTP.Addr != cfg.HTTP.AdminAddr, "there is a listener")
	if root := cfg.HTTP.RootPath; root != "" {
		demand(root[0] == '/' && path.Clean(root) == root, "ROOT_PATH is a path")
		router := chi.NewRouter()
		router.Route(root, func(chi.Router) {}) // panics where it can't be routed
	}
	for _, origin := range cfg.HTTP.CORSOrigins {
		parsed, err := url.Parse(origin)
		demand(err == nil && parsed.Host != "" && parsed.Path == "" && parsed.User == nil && origin == strings.ToLower(origin), "an origin is one")
	}
	for _, proxy := range cfg.HTTP.TrustedProxies {
		demand(proxy.IsValid() && proxy == proxy.Masked() && (!proxy.Addr().Is4In6() || proxy.Bits() < 96), "a proxy is a prefix")
	}
	if cfg.Push.CollectorURL != "" || cfg.Tracing.Enabled {
		parsed, err := url.Parse(cfg.Push.CollectorURL)
		demand(err == nil && parsed.Hostname() != "" && parsed.Port() != "" && parsed.User == nil && parsed.Path == "" &&
			cfg.Tracing.CollectorURL == cfg.Push.CollectorURL, "the collector is host and port")
	}
	demand(cfg.Log.Level >= zapcore.DebugLevel && cfg.Log.Level <= zapcore.ErrorLevel, "the log has a level")
	var sum time.Duration
	for _, part := range cfg.Shutdown.parts() {
		demand(part > 0, "each part of a shutdown has time")
		sum += part
	}
	demand(sum < cfg.Shutdown.Total && cfg.Hub.DrainWindow >= 0 && cfg.Hub.DrainWindow <= cfg.Shutdown.Drain, "a shutdown fits its time")
}

// FuzzLoad: any two variables, with any values, give a sound configuration or an error
// that shows no secret. An asterisk stands for one in the values that may hold any.
func FuzzLoad(f *testing.F) {
	variables := Variables()
	index := func(name string) byte {
		return byte(slices.IndexFunc(variables, func(v Variable) bool { return v.Name == name }))
	}
	pem := "-----BEGIN PUBLIC KEY-----\n*\n-----END PUBLIC KEY-----\n"
	for _, pair := range [][4]string{
		{"KEY", "*", "ALGORITHM", "HS512"}, {"KEY", pem, "ALGORITHM", "RS256"}, {"KEY", `-----BEGIN PRIVATE KEY-----\nAAAA`, "ALGORITHM", "ES256"},
		{"KEY", "", "RABBITMQ_URL", ""}, {"KEY", "*", "RABBITMQ_URL", " ,"}, {"RABBITMQ_URL", "amqp://u:*@h,amqps://u:*@h:1/%2f", "QUEUE_SCOPE", "instance"},
		{"RABBITMQ_URL", "amqp://u:*@h:99999/", "REDIS_URL", "redis://:*@h:x/0"}, {"REDIS_URL", "rediss://u:*@[::1]/1?*=1", "KEY", ""},
		{"OPENTELEMETRY_COLLECTOR_URL", "https://u:*@h", "OPENTELEMETRY_TRACES", "true"}, {"OPENTELEMETRY_COLLECTOR_URL", "[::1]:otlp", "LOG_LEVEL", "fatal"},
		{"CORS_ORIGINS", "HTTPS://A.example:443,null\r\n,http://[::1%25a]", "TRUSTED_PROXIES", "::ffff:10.0.0.1/97,10.1.1.1/8,fe80::1%a"},
		{"HTTP_ADDR", ":http", "ADMIN_ADDR", "[::1]:0"}, {"ROOT_PATH", "/a/../{b}", "SERVICE_NAME", "\xff"}, {"ROOT_PATH", "/%2f/\x7f", "LOG_FORMAT", "console"},
		{"WS_MESSAGES_PER_SECOND", "NaN", "WS_MESSAGES_BURST", "0x1"}, {"WS_MESSAGES_PER_SECOND", "1e400", "WS_MESSAGES_BURST", "-0"},
		{"SHUTDOWN_TIMEOUT", "1ns", "SHUTDOWN_DRAIN_WINDOW", "2562047h47m16.854775807s"}, {"SHUTDOWN_TIMEOUT", "2562047h", "SHUTDOWN_DRAIN_WINDOW", "-1s"},
		{"CONNECTION_PASS_LENGTH", " 016 ", "CONNECTION_PASS_EXPIRATION_TIME", "9223372036854775807"}, {"WS_MAX_MESSAGE_BYTES", "+1", "WS_CLOSE_ON_TOKEN_EXPIRY", "T"},
		{"DATABASE_EXCHANGE_NAME", "websockets", "WEBSOCKETS_EXCHANGE_NAME", "amq."},
	} {
		f.Add(index(pair[0]), pair[1], index(pair[2]), pair[3])
	}
	f.Fuzz(func(t *testing.T, first byte, value string, second byte, other string) {
		changed := make(map[string]string)
		for _, pair := range []struct {
			index byte
			value string
		}{{first, value}, {second, other}} {
			name := variables[int(pair.index)%len(variables)].Name
			if name == "KEY_FILE" {
				continue // it would name any file
			}
			if slices.Contains(secretive, name) {
				pair.value = strings.ReplaceAll(pair.value, "*", secret)
			}
			changed[name] = pair.value
		}
		cfg, err := From(base(changed))
		checkOutcome(t, cfg, err)
		if err == nil && cfg.Demo && cfg.Auth.Token.Key == secret {
			t.Error("demo mode uses a key that was given")
		}
		if again, sameErr := From(base(changed)); !cfg.Demo && !reflect.DeepEqual(cfg, again) || (err == nil) != (sameErr == nil) || err != nil && err.Error() != sameErr.Error() {
			t.Errorf("read twice: %v and %v", err, sameErr)
		}
	})
}

// FuzzDotEnv: a .env file means what its variables mean in the environment, which wins
// over it; and one that can't be read is not quoted. An asterisk stands for a secret.
func FuzzDotEnv(f *testing.F) {
	for _, file := range []string{
		"", "KEY=*\nRABBITMQ_URL=amqp://u:*@h/\n", "KEY='*'\nRABBITMQ_URL=\"amqp://u:*@h\"", "export KEY=* # *\r\nRABBITMQ_URL: amqp://h\r\n",
		"KEY=*\nRABBITMQ_URL=amqp://u:${KEY}@h:x", "KEY='*", "*", "KEY *", "=*\n", "KEY=\"-----BEGIN *\\n\"\nALGORITHM=RS256", "\ufeffKEY=*",
		"KEY=*\x00\n", "ROOT_PATH=\nCORS_ORIGINS=\nLOG_LEVEL=debug\n", "LOG_LEVEL=$LOG_LEVEL\nKEY=$(*)\n", "# *", "REDIS_URL=redis://:*@\nRABBITMQ_URL=amqp://h\n",
	} {
		f.Add([]byte(file), false)
		f.Add([]byte(file), true)
	}
	// The test's own environment must not win over the file. What is set is restored.
	for _, variable := range Variables() {
		f.Setenv(variable.Name, "")
		if err := os.Unsetenv(variable.Name); err != nil {
			f.Fatal(err)
		}
	}
	f.Chdir(f.TempDir())
	f.Fuzz(func(t *testing.T, file []byte, overridden bool) {
		text := strings.ReplaceAll(string(file), "*", secret)
		values, parseErr := godotenv.Unmarshal(text)
		if values["KEY_FILE"] != "" {
			return // it would name any file
		}
		if strings.Contains(values["CORS_ORIGINS"]+values["TRUSTED_PROXIES"], secret) {
			return // they hold none, and are quoted
		}
		if err := os.WriteFile(".env", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if overridden {
			t.Setenv("LOG_LEVEL", "warn")
		}
		cfg, err := Load()
		checkOutcome(t, cfg, err)
		if parseErr != nil {
			if err == nil || !strings.Contains(err.Error(), "  .env can't be read") {
				t.Errorf("a file that can't be read (%v): %v", parseErr, err)
			}
			return
		}
		want := maps.Clone(values)
		if overridden {
			want["LOG_LEVEL"] = "warn"
		}
		same, sameErr := From(envconfig.MapLookuper(want))
		if (err == nil) != (sameErr == nil) || err != nil && err.Error() != sameErr.Error() {
			t.Fatalf("from the file: %v; from the environment: %v", err, sameErr)
		}
		if same.Demo {
			same.Auth.Token.Key = cfg.Auth.Token.Key // random
		}
		if !reflect.DeepEqual(cfg, same) {
			t.Error("the file means something else than the environment")
		}
		if overridden && err == nil && cfg.Log.Level != zapcore.WarnLevel {
			t.Error("the file wins over the environment")
		}
	})
}
