package config

import "go.uber.org/fx"

// Module hands each module its part of the configuration.
func Module(cfg Config) fx.Option {
	return fx.Module("config", fx.Supply(
		cfg.Auth, cfg.PassPolicy, cfg.ConnectLimits, cfg.Hub, cfg.Rabbit, cfg.HTTP, cfg.Docs,
		cfg.Push, cfg.Tracing,
	))
}
