package main

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// errNoProcess is returned where a process can't be looked into: it is gone, belongs
// to someone else, or the system is not Linux.
var errNoProcess = errors.New("the process can't be looked into")

// usage is what a process has used so far and holds now.
type usage struct {
	CPU time.Duration // user and system time
	RSS int64         // resident memory, bytes
}

// exists reports whether there is a process; one of another user is one.
func exists(pid int) bool {
	process, err := os.FindProcess(pid)
	return err == nil && !errors.Is(process.Signal(syscall.Signal(0)), os.ErrProcessDone)
}

// measured is what is measured of the processes of one role.
type measured struct {
	pids []int
}

// sample adds up the processes; ok is false unless all could be looked into.
func (m measured) sample() (total usage, ok bool) {
	for _, pid := range m.pids {
		u, err := usageOf(pid)
		if err != nil {
			return usage{}, false
		}
		total.CPU += u.CPU
		total.RSS += u.RSS
	}
	return total, len(m.pids) > 0
}
