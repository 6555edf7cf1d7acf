package authpass

import (
	"go.uber.org/fx"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// Config says how tokens are checked and where passes are stored.
type Config struct {
	Token TokenConfig
	// RedisURL is where passes are stored; empty: in this process.
	RedisURL string
}

// Module provides the app.TokenVerifier, the app.PassStore, and the check of it for
// /readyz. It wants a Config and a *zap.Logger.
var Module = fx.Module("authpass", fx.Provide(
	func(cfg Config) (app.TokenVerifier, error) { return NewVerifier(cfg.Token) },
	newPassStore,
	fx.Annotate(newCheck, fx.ResultTags(`group:"checks"`)),
))

func newPassStore(lifecycle fx.Lifecycle, cfg Config, log *zap.Logger) (app.PassStore, error) {
	if cfg.RedisURL == "" {
		return NewMemoryStore(), nil
	}
	store, err := NewRedisStore(cfg.RedisURL, log.Named("authpass"))
	if err != nil {
		return nil, err
	}
	lifecycle.Append(fx.StartStopHook(store.Start, store.Stop))
	return store, nil
}

func newCheck(store app.PassStore) app.Check {
	return app.Check{Name: "pass_store", Probe: store.Check}
}
