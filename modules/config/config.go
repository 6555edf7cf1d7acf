// Package config reads the configuration from the environment and a .env file,
// checks it as a whole, and hands each module its part.
package config

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/joho/godotenv"
	"github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap/zapcore"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/apidocs"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/httpapi"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/hub"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/metrics"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/tracing"
)

// Config is the whole configuration, checked. It holds secrets: it is never printed.
type Config struct {
	// Demo says that neither a broker nor a key is configured: everything then lives
	// in this process.
	Demo bool

	Auth           authpass.Config
	PassPolicy     app.PassPolicy
	ConnectLimits  app.ConnectLimits
	ConfirmTimeout time.Duration
	Hub            hub.Config
	Rabbit         rabbit.Config
	HTTP           httpapi.Config
	Docs           apidocs.Config
	Push           metrics.PushConfig
	Tracing        tracing.Config
	Log            Log
	Shutdown       Shutdown
}

// Log says what is logged and how.
type Log struct {
	Level zapcore.Level
	// Console asks for lines for people instead of JSON.
	Console bool
}

// Load reads the configuration from the process environment and, where it exists,
// from the .env file in the working directory; the environment wins. The error lists
// everything that is wrong, one line each, and holds no secret.
//
// Commands that need a part only name the variables that they use: the rest is then
// not checked.
func Load(variables ...string) (Config, error) {
	file, err := godotenv.Read(".env")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// The parser's error quotes the line it fails at, which may hold a secret.
		return Config{}, errors.New("the configuration is not valid:\n  .env can't be read: each line must be NAME=value or a comment")
	}
	return From(envconfig.MultiLookuper(envconfig.OsLookuper(), envconfig.MapLookuper(file)), variables...)
}

// From reads the configuration from the variables that lookup finds; see Load.
func From(lookup envconfig.Lookuper, variables ...string) (Config, error) {
	env, unread := read(lookup)
	v := validator{unread: unread}
	for variable, notation := range unread {
		v.faults = append(v.faults, fault{variable, "must be " + notation})
	}
	cfg := v.config(env)
	lines := []string{"the configuration is not valid:"}
	for _, described := range Variables() {
		if len(variables) > 0 && !slices.Contains(variables, described.Name) {
			continue
		}
		for _, found := range v.faults {
			if found.variable == described.Name {
				lines = append(lines, "  "+found.variable+" "+found.text)
			}
		}
	}
	if len(lines) > 1 {
		return Config{}, errors.New(strings.Join(lines, "\n"))
	}
	return cfg, nil
}

// fault is one thing that is wrong with one variable.
type fault struct{ variable, text string }

// validator turns an environment into a Config and gathers what is wrong with it.
type validator struct {
	faults []fault
	// unread are the variables that could not be read: their zero value says nothing.
	unread map[string]string
}

func (v *validator) fault(variable, format string, args ...any) {
	if _, known := v.unread[variable]; !known {
		v.faults = append(v.faults, fault{variable, fmt.Sprintf(format, args...)})
	}
}

// within demands that n is from low to high.
func within[N int | int64 | float64](v *validator, variable string, n, low, high N) {
	switch {
	case n >= low && n <= high:
	case n < low && high >= N(math.MaxInt32):
		v.fault(variable, "must be at least %v", low)
	default:
		v.fault(variable, "must be from %v to %v", low, high)
	}
}

func (v *validator) duration(variable string, d, low, high time.Duration) {
	if d < low || d > high {
		v.fault(variable, "must be from %s to %s", low, high)
	}
}

func (v *validator) config(env environment) Config {
	key := v.key(env)
	demo := len(env.RabbitMQURL) == 0 && env.Key == "" && env.KeyFile == ""
	if !demo && key == "" && env.KeyFile == "" {
		v.fault("KEY", "is required when RABBITMQ_URL is set (or KEY_FILE)")
	}
	if !demo && len(env.RabbitMQURL) == 0 {
		v.fault("RABBITMQ_URL", "is required when KEY is set")
	}
	if demo {
		// All lives in this process, and nobody needs to know the key.
		env.RedisURL, env.Algorithm, key = "", "HS256", rand.Text()+rand.Text()
	}
	v.limits(env)
	shutdown := v.shutdown(env)
	origins := v.origins(env.CORSOrigins)
	rootPath := v.rootPath(env.RootPath)
	collector, instance := v.collector(env), instanceID(env.HTTPAddr)
	shared := 0
	if env.QueueScope == string(rabbit.ScopeInstance) && !demo {
		shared = env.InstancePrefetch
	}
	cfg := Config{
		Demo: demo,
		Auth: authpass.Config{
			Token:    authpass.TokenConfig{Algorithm: env.Algorithm, Key: key},
			RedisURL: v.redis(env.RedisURL),
		},
		PassPolicy: app.PassPolicy{
			Length:            env.PassLength,
			Lifetime:          time.Duration(env.PassExpiration) * time.Second,
			RequestsPerMinute: env.PassRequestsPerMinute,
		},
		ConnectLimits: app.ConnectLimits{
			MaxConnections:        env.MaxConnections,
			ConnectsPerSecond:     env.ConnectsPerSecond,
			PassFailuresPerMinute: env.PassFailuresPerMinute,
		},
		ConfirmTimeout: env.ConfirmTimeout,
		Hub: hub.Config{
			MaxMessageBytes:       env.MaxMessageBytes,
			PingInterval:          env.PingInterval,
			WriteTimeout:          env.WriteTimeout,
			SendQueue:             env.SendQueue,
			MaxConnectionsPerUser: env.MaxConnectionsPerUser,
			CloseOnTokenExpiry:    env.CloseOnTokenExpiry,
			MessagesPerSecond:     env.MessagesPerSecond,
			MessagesBurst:         env.MessagesBurst,
			ConfirmTimeout:        env.ConfirmTimeout,
			AllowedOrigins:        origins,
			CloseWhenFull:         shared > 0,
			SharedPrefetch:        shared,
			DrainWindow:           shutdown.Window,
			DrainTimeout:          shutdown.Drain,
		},
		Rabbit: rabbit.Config{
			URLs:               v.brokers(env.RabbitMQURL),
			WebsocketsExchange: v.exchange("WEBSOCKETS_EXCHANGE_NAME", env.WebsocketsExchange),
			DatabaseExchange:   v.exchange("DATABASE_EXCHANGE_NAME", env.DatabaseExchange),
			Prefetch:           env.Prefetch,
			InstancePrefetch:   env.InstancePrefetch,
			Scope:              v.scope(env.QueueScope),
			AppID:              env.ServiceName,
			StopTimeout:        shutdown.Broker,
		},
		HTTP: httpapi.Config{
			Addr:           v.address("HTTP_ADDR", env.HTTPAddr),
			AdminAddr:      v.address("ADMIN_ADDR", env.AdminAddr),
			RootPath:       rootPath,
			CORSOrigins:    origins,
			TrustedProxies: v.proxies(env.TrustedProxies),
			ServerName:     env.ServiceName,
			StopTimeout:    shutdown.Listener,
		},
		Docs: apidocs.Config{RootPath: rootPath, Demo: demo, Metrics: env.AdminAddr == ""},
		Push: metrics.PushConfig{
			CollectorURL: collector,
			ServiceName:  env.ServiceName,
			InstanceID:   instance,
			StopTimeout:  shutdown.Telemetry,
		},
		Tracing: tracing.Config{
			Enabled:            env.Traces,
			CollectorURL:       collector,
			ServiceName:        env.ServiceName,
			InstanceID:         instance,
			DatabaseExchange:   env.DatabaseExchange,
			WebsocketsExchange: env.WebsocketsExchange,
			StopTimeout:        shutdown.Telemetry,
		},
		Log:      v.log(env),
		Shutdown: shutdown,
	}
	if env.WebsocketsExchange == env.DatabaseExchange {
		v.fault("DATABASE_EXCHANGE_NAME", "must differ from WEBSOCKETS_EXCHANGE_NAME")
	}
	if env.AdminAddr != "" && env.AdminAddr == env.HTTPAddr {
		v.fault("ADMIN_ADDR", "must differ from HTTP_ADDR")
	}
	return cfg
}

// key returns the text of KEY or of the file that KEY_FILE names, and checks that it
// fits ALGORITHM.
func (v *validator) key(env environment) string {
	algorithm := slices.Contains(authpass.Algorithms, env.Algorithm)
	if !algorithm {
		v.fault("ALGORITHM", "must be one of %s", strings.Join(authpass.Algorithms, ", "))
	}
	key, from := env.Key, "KEY"
	if env.KeyFile != "" {
		if env.Key != "" {
			v.fault("KEY_FILE", "must not be set together with KEY")
			return key
		}
		content, err := os.ReadFile(env.KeyFile)
		if err != nil {
			v.fault("KEY_FILE", "can't be read: %v", errors.Unwrap(err))
			return ""
		}
		key, from = strings.TrimSpace(string(content)), "KEY_FILE"
		if key == "" {
			v.fault("KEY_FILE", "names an empty file")
			return ""
		}
	}
	if algorithm && key != "" {
		if _, err := authpass.NewVerifier(authpass.TokenConfig{Algorithm: env.Algorithm, Key: key}); err != nil {
			v.fault(from, "and ALGORITHM do not go together: %v", err)
		}
	}
	return key
}

func (v *validator) limits(env environment) {
	within(v, "CONNECTION_PASS_LENGTH", env.PassLength, domain.MinPassLength, domain.MaxPassLength)
	within(v, "CONNECTION_PASS_EXPIRATION_TIME", env.PassExpiration, 1, 86400)
	within(v, "CHANNEL_PREFETCH_MESSAGES_COUNT", env.Prefetch, 1, math.MaxUint16)
	within(v, "INSTANCE_PREFETCH_COUNT", env.InstancePrefetch, 1, math.MaxUint16)
	within(v, "WS_MAX_MESSAGE_BYTES", env.MaxMessageBytes, 1, 64<<20)
	within(v, "WS_SEND_QUEUE", env.SendQueue, 1, 1<<20)
	within(v, "WS_MAX_CONNECTIONS", env.MaxConnections, 0, math.MaxInt32)
	within(v, "WS_MAX_CONNECTIONS_PER_USER", env.MaxConnectionsPerUser, 0, math.MaxInt32)
	within(v, "WS_CONNECTS_PER_SECOND", env.ConnectsPerSecond, 0, math.MaxInt32)
	within(v, "PASS_REQUESTS_PER_MINUTE", env.PassRequestsPerMinute, 0, math.MaxInt32)
	within(v, "PASS_FAILURES_PER_MINUTE", env.PassFailuresPerMinute, 0, math.MaxInt32)
	within(v, "WS_MESSAGES_PER_SECOND", env.MessagesPerSecond, 0, math.MaxInt32)
	if _, unread := v.unread["WS_MESSAGES_PER_SECOND"]; unread || env.MessagesPerSecond != 0 {
		within(v, "WS_MESSAGES_BURST", env.MessagesBurst, 1, math.MaxInt32)
	}
	v.duration("PUBLISH_CONFIRM_TIMEOUT", env.ConfirmTimeout, 10*time.Millisecond, 10*time.Minute)
	v.duration("WS_PING_INTERVAL", env.PingInterval, 10*time.Millisecond, time.Hour)
	v.duration("WS_WRITE_TIMEOUT", env.WriteTimeout, 10*time.Millisecond, 10*time.Minute)
	// It becomes a label of metrics, which is UTF-8, and an AMQP short string.
	if env.ServiceName == "" || len(env.ServiceName) > 255 || !utf8.ValidString(env.ServiceName) {
		v.fault("SERVICE_NAME", "must be 1 to 255 bytes of UTF-8")
	}
}

func (v *validator) scope(text string) rabbit.Scope {
	scope := rabbit.Scope(text)
	if scope != rabbit.ScopeUser && scope != rabbit.ScopeInstance {
		v.fault("QUEUE_SCOPE", "must be user or instance")
	}
	return scope
}

func (v *validator) exchange(variable, name string) string {
	// AMQP 0-9-1 section 3.1.4.3.1: a short string; section 3.1.3.1: names that begin
	// with "amq." are the broker's own, and the default exchange has none.
	if name == "" || len(name) > 255 || !utf8.ValidString(name) || strings.HasPrefix(name, "amq.") {
		v.fault(variable, "must be the name of an exchange: 1 to 255 bytes of UTF-8, not beginning with amq.")
	}
	return name
}

func (v *validator) address(variable, address string) string {
	if address == "" {
		return ""
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		v.fault(variable, "must be host:port or :port")
	}
	return address
}

// routeRoots are the first segments of the service's routes.
var routeRoots = []string{"debug", "demo", "docs", "healthz", "messages", "metrics", "openapi.json", "readyz"}

func (v *validator) rootPath(path string) string {
	path = strings.TrimRight(path, "/")
	if path == "" {
		return ""
	}
	parsed, err := url.Parse(path)
	if err != nil || path[0] != '/' || parsed.Path != path || strings.ContainsAny(path, "{}*?# ") || strings.Contains(path, "//") {
		v.fault("ROOT_PATH", "must be a path such as /transportation, or empty")
		return path
	}
	// A prefix that is a route's beginning would make two routes of one path.
	if first, _, _ := strings.Cut(path[1:], "/"); slices.Contains(routeRoots, first) {
		v.fault("ROOT_PATH", "must not begin with a route of the service: /%s", first)
	}
	return path
}

// origins returns the origins as browsers write them: in lower case, and without the
// port that is their scheme's own (RFC 6454, section 6.2).
func (v *validator) origins(list []string) []string {
	origins := trimmed(list)
	for i, origin := range origins {
		parsed, err := url.Parse(origin)
		if err != nil || parsed.Scheme == "" || parsed.Hostname() == "" || !strings.EqualFold(origin, parsed.Scheme+"://"+parsed.Host) {
			v.fault("CORS_ORIGINS", "must be origins such as https://chat.example.com, comma-separated: %q is none", origin)
			continue
		}
		origins[i] = strings.ToLower(origin)
		if port := map[string]string{"http": ":80", "https": ":443"}[parsed.Scheme]; port != "" {
			origins[i] = strings.TrimSuffix(origins[i], port)
		}
	}
	return origins
}

func (v *validator) proxies(list []string) []netip.Prefix {
	var proxies []netip.Prefix
	for _, text := range trimmed(list) {
		prefix, err := netip.ParsePrefix(text)
		if address, addressErr := netip.ParseAddr(text); addressErr == nil {
			prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		if err != nil {
			v.fault("TRUSTED_PROXIES", "must be CIDRs such as 10.0.0.0/8, comma-separated: %q is none", text)
			continue
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			// Addresses of clients are compared in their IPv4 form.
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		proxies = append(proxies, prefix.Masked())
	}
	return proxies
}

func (v *validator) brokers(list []string) []string {
	urls := trimmed(list)
	if len(urls) == 0 && len(list) > 0 {
		v.fault("RABBITMQ_URL", "must be amqp:// or amqps:// URLs, comma-separated")
	}
	for i, text := range urls {
		if uri, err := amqp091.ParseURI(text); err != nil || uri.Port < 1 || uri.Port > math.MaxUint16 {
			// The library's error may quote the URL, and with it the password.
			v.fault("RABBITMQ_URL", "must be amqp:// or amqps:// URLs, comma-separated: number %d is none", i+1)
		}
	}
	return urls
}

func (v *validator) redis(text string) string {
	if text == "" {
		return ""
	}
	if _, err := redis.ParseURL(text); err != nil {
		v.fault("REDIS_URL", "must be a URL such as redis://:password@host:6379/0")
	}
	return text
}

// collector returns the endpoint as http://host:port or https://host:port; empty where
// there is none.
func (v *validator) collector(env environment) string {
	text := env.CollectorURL
	if text == "" {
		if env.Traces {
			v.fault("OPENTELEMETRY_TRACES", "needs OPENTELEMETRY_COLLECTOR_URL")
		}
		return ""
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	// The default ports: OTLP/gRPC's own (OTLP specification), and HTTPS's for TLS.
	ports := map[string]string{"http": "4317", "https": "443"}
	endpoint, err := url.Parse(text)
	if err == nil && ports[endpoint.Scheme] != "" && endpoint.Hostname() != "" && endpoint.User == nil &&
		strings.Trim(endpoint.Path, "/") == "" && endpoint.RawQuery == "" && endpoint.Fragment == "" {
		port := cmp.Or(endpoint.Port(), ports[endpoint.Scheme])
		if _, err := net.LookupPort("tcp", port); err == nil {
			return endpoint.Scheme + "://" + net.JoinHostPort(endpoint.Hostname(), port)
		}
	}
	// The text is not quoted: it may hold a password.
	v.fault("OPENTELEMETRY_COLLECTOR_URL", "must be http://host:port, host:port or https://host:port")
	return ""
}

// instanceID names this instance among those of the service, as Prometheus does: the
// name of the host and the port.
func instanceID(address string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	_, port, _ := net.SplitHostPort(address)
	return net.JoinHostPort(host, port)
}

func (v *validator) log(env environment) Log {
	level, err := zapcore.ParseLevel(env.LogLevel)
	if err != nil || level < zapcore.DebugLevel || level > zapcore.ErrorLevel {
		v.fault("LOG_LEVEL", "must be debug, info, warn or error")
	}
	if env.LogFormat != "json" && env.LogFormat != "console" {
		v.fault("LOG_FORMAT", "must be json or console")
	}
	return Log{Level: level, Console: env.LogFormat == "console"}
}

// trimmed returns the entries without the white space around them, and without the
// empty ones.
func trimmed(list []string) []string {
	entries := make([]string, 0, len(list))
	for _, entry := range list {
		entries = append(entries, strings.TrimSpace(entry))
	}
	return slices.DeleteFunc(entries, func(entry string) bool { return entry == "" })
}
