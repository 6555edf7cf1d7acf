package config

import (
	"context"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"
)

// environment is every variable that the service reads: its name and default for
// go-envconfig, and what -h says about it. The table of the README and .env.example
// name the same variables; a test holds them together.
type environment struct {
	HTTPAddr  string `env:"HTTP_ADDR,default=:8001" about:"address of the public listener"`
	AdminAddr string `env:"ADMIN_ADDR" about:"when set, /metrics, /healthz, /readyz and /debug/pprof/ are served there and not on HTTP_ADDR"`
	RootPath  string `env:"ROOT_PATH,default=/transportation" about:"prefix under which every route is served too; empty: at the root only"`

	Key       string `env:"KEY" about:"secret (HS*) or PEM public key that tokens are checked with"`
	KeyFile   string `env:"KEY_FILE" about:"path of a file that holds KEY"`
	Algorithm string `env:"ALGORITHM,default=HS256" about:"HS256/384/512, RS256/384/512, PS256/384/512, ES256/384/512 or EdDSA"`

	PassLength     int    `env:"CONNECTION_PASS_LENGTH,default=32" about:"characters of a connection pass, 16 to 512"`
	PassExpiration int    `env:"CONNECTION_PASS_EXPIRATION_TIME,default=30" about:"seconds that a connection pass is good"`
	RedisURL       string `env:"REDIS_URL" about:"redis:// or rediss:// URL; passes live there and are shared by all instances; without it, in this process"`

	RabbitMQURL        []string      `env:"RABBITMQ_URL" about:"amqp:// or amqps:// URL; several, comma-separated, for a cluster"`
	WebsocketsExchange string        `env:"WEBSOCKETS_EXCHANGE_NAME,default=websockets" about:"direct exchange to which backends publish for users"`
	DatabaseExchange   string        `env:"DATABASE_EXCHANGE_NAME,default=database" about:"direct exchange to which clients' messages are published"`
	Prefetch           int           `env:"CHANNEL_PREFETCH_MESSAGES_COUNT,default=16" about:"unacknowledged deliveries of one user's queue"`
	InstancePrefetch   int           `env:"INSTANCE_PREFETCH_COUNT,default=1024" about:"unacknowledged deliveries of the instance's queue (QUEUE_SCOPE=instance)"`
	QueueScope         string        `env:"QUEUE_SCOPE,default=user" about:"user: a queue per user; instance: one queue with a binding per user"`
	ConfirmTimeout     time.Duration `env:"PUBLISH_CONFIRM_TIMEOUT,default=5s" about:"how long the broker may take to confirm a message"`

	CORSOrigins    []string `env:"CORS_ORIGINS,default=http://localhost,http://localhost:3000" about:"origins of pages that may call the service, comma-separated"`
	TrustedProxies []string `env:"TRUSTED_PROXIES" about:"CIDRs of proxies whose X-Forwarded-For is believed, comma-separated"`

	MaxMessageBytes       int64         `env:"WS_MAX_MESSAGE_BYTES,default=65536" about:"greatest frame that a client may send, in bytes"`
	PingInterval          time.Duration `env:"WS_PING_INTERVAL,default=25s" about:"time between pings; a peer silent for one more is dropped"`
	WriteTimeout          time.Duration `env:"WS_WRITE_TIMEOUT,default=10s" about:"how long one write may take, or a send queue may stay full"`
	SendQueue             int           `env:"WS_SEND_QUEUE,default=64" about:"deliveries that wait for one connection"`
	MaxConnections        int           `env:"WS_MAX_CONNECTIONS,default=0" about:"connections of this instance; 0 is no limit"`
	MaxConnectionsPerUser int           `env:"WS_MAX_CONNECTIONS_PER_USER,default=16" about:"connections of one user on this instance; 0 is no limit"`
	CloseOnTokenExpiry    bool          `env:"WS_CLOSE_ON_TOKEN_EXPIRY,default=true" about:"close a connection with 4401 when its token expires"`
	MessagesPerSecond     float64       `env:"WS_MESSAGES_PER_SECOND,default=20" about:"messages a second of one connection; 0 is no limit"`
	MessagesBurst         int           `env:"WS_MESSAGES_BURST,default=40" about:"messages of one connection that may come at once"`
	ConnectsPerSecond     int           `env:"WS_CONNECTS_PER_SECOND,default=0" about:"upgrades a second of this instance; 0 is no limit"`
	PassRequestsPerMinute int           `env:"PASS_REQUESTS_PER_MINUTE,default=60" about:"passes a minute for one user; 0 is no limit"`
	PassFailuresPerMinute int           `env:"PASS_FAILURES_PER_MINUTE,default=0" about:"bad passes a minute from one client address; 0 is no limit"`

	ServiceName     string        `env:"SERVICE_NAME,default=transportation_backend" about:"name in metrics, traces and AMQP's app_id"`
	CollectorURL    string        `env:"OPENTELEMETRY_COLLECTOR_URL" about:"OTLP/gRPC endpoint: http://host:4317 or host:4317 (plain), https://… (TLS)"`
	Traces          bool          `env:"OPENTELEMETRY_TRACES,default=false" about:"send spans to the collector and pass W3C trace context on"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT,default=20s" about:"time in which a shutdown is complete"`
	DrainWindow     time.Duration `env:"SHUTDOWN_DRAIN_WINDOW,default=2s" about:"time over which the connections are closed, a part of SHUTDOWN_TIMEOUT"`
	LogLevel        string        `env:"LOG_LEVEL,default=info" about:"debug, info, warn or error"`
	LogFormat       string        `env:"LOG_FORMAT,default=json" about:"json or console"`
}

// emptyMeansEmpty are the variables for which the empty text is a value of its own.
// For all others it is the same as not being set, as compose files write it.
var emptyMeansEmpty = map[string]bool{"ROOT_PATH": true, "CORS_ORIGINS": true}

// lookuper hides empty variables from go-envconfig, which would not use the default
// for them.
type lookuper struct{ envconfig.Lookuper }

// Lookup implements envconfig.Lookuper.
func (l lookuper) Lookup(key string) (string, bool) {
	value, found := l.Lookuper.Lookup(key)
	if strings.TrimSpace(value) == "" && !emptyMeansEmpty[key] {
		return "", false
	}
	return value, found
}

// read fills an environment and returns the variables that could not be read, each
// with how it is to be written. go-envconfig stops at the first error, so each
// variable is processed alone; and its text quotes the value, which may be a secret.
func read(from envconfig.Lookuper) (environment, map[string]string) {
	var env environment
	unread := make(map[string]string)
	all := reflect.ValueOf(&env).Elem()
	for i := range all.NumField() {
		field := all.Type().Field(i)
		alone := reflect.New(reflect.StructOf([]reflect.StructField{field}))
		from := lookuper{from}
		if text, found := from.Lookup(variable(field)); found && isInteger(field.Type) {
			// go-envconfig would take 030 for 24, and 0x1E for 30.
			number, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				unread[variable(field)] = notation(field.Type)
				continue
			}
			from = lookuper{envconfig.MapLookuper(map[string]string{variable(field): strconv.FormatInt(number, 10)})}
		}
		if err := envconfig.ProcessWith(context.Background(), &envconfig.Config{Target: alone.Interface(), Lookuper: from}); err != nil {
			unread[variable(field)] = notation(field.Type)
			continue
		}
		all.Field(i).Set(alone.Elem().Field(0))
	}
	return env, unread
}

// isInteger reports whether a value of the type is written as a whole number.
func isInteger(t reflect.Type) bool {
	return (t.Kind() == reflect.Int || t.Kind() == reflect.Int64) && t != reflect.TypeFor[time.Duration]()
}

// notation says how a value of the type is written.
func notation(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration such as 25s or 500ms"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Float64:
		return "a number"
	case isInteger(t):
		return "a whole number"
	}
	return "a text"
}

// variable returns the name of the environment variable of a field of environment.
func variable(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("env"), ",")
	return name
}

// Variable describes a variable for people.
type Variable struct{ Name, Default, About string }

// Variables lists every variable that the service reads, in the order of the README.
func Variables() []Variable {
	fields := reflect.TypeFor[environment]()
	list := make([]Variable, 0, fields.NumField())
	for i := range fields.NumField() {
		field := fields.Field(i)
		_, fallback, _ := strings.Cut(field.Tag.Get("env"), ",default=")
		list = append(list, Variable{Name: variable(field), Default: fallback, About: field.Tag.Get("about")})
	}
	return list
}
