//go:build !linux

package main

import "syscall"

// usageOf knows nothing: there is no proc(5) here.
func usageOf(int) (usage, error) { return usage{}, errNoProcess }

// listenerOn knows nothing: there is no proc(5) here.
func listenerOn(uint16) (int, error) { return 0, errNoProcess }

// bindLate leaves the choice of the source port to the system.
func bindLate(_, _ string, _ syscall.RawConn) error { return nil }
