package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTicks is USER_HZ, in which proc(5) counts CPU time: 100 on every architecture
// that Go runs on.
const clockTicks = 100

// usageOf reads /proc/<pid>/stat and statm; see proc(5).
func usageOf(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, errNoProcess
	}
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return usage{}, errNoProcess
	}
	return parseUsage(stat, statm)
}

func parseUsage(stat, statm []byte) (usage, error) {
	// The name, the second field, is in parentheses and may hold anything.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return usage{}, errNoProcess
	}
	fields, sizes := strings.Fields(string(stat[end+1:])), strings.Fields(string(statm))
	const firstField, utime, stime = 3, 14, 15
	// One that has ended waits for its parent, and holds no memory any more.
	if len(fields) <= stime-firstField || len(sizes) < 2 || fields[0] == "Z" {
		return usage{}, errNoProcess
	}
	user, err1 := strconv.ParseInt(fields[utime-firstField], 10, 64)
	system, err2 := strconv.ParseInt(fields[stime-firstField], 10, 64)
	pages, err3 := strconv.ParseInt(sizes[1], 10, 64)
	// One that is ending gives its memory back before it is shown as ended.
	if err1 != nil || err2 != nil || err3 != nil || pages == 0 {
		return usage{}, errNoProcess
	}
	return usage{
		CPU: time.Duration(user+system) * time.Second / clockTicks,
		RSS: pages * int64(os.Getpagesize()),
	}, nil
}

// listenerOn returns the process that listens on a TCP port of this machine.
func listenerOn(port uint16) (pid int, err error) {
	inodes := make(map[string]bool)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		file, err := os.Open(table)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if inode := listening(lines.Text(), port); inode != "" {
				inodes["socket:["+inode+"]"] = true
			}
		}
		_ = file.Close()
	}
	if len(inodes) == 0 {
		return 0, fmt.Errorf("nothing listens on port %d: %w", port, errNoProcess)
	}
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return 0, fmt.Errorf("look for the process that listens on port %d: %w", port, err)
	}
	for _, directory := range descriptors {
		entries, err := os.ReadDir(directory)
		if err != nil {
			continue // another user's process, or one that has ended
		}
		for _, entry := range entries {
			if target, err := os.Readlink(filepath.Join(directory, entry.Name())); err == nil && inodes[target] {
				return strconv.Atoi(filepath.Base(filepath.Dir(directory)))
			}
		}
	}
	return 0, fmt.Errorf("the process that listens on port %d: %w", port, errNoProcess)
}

// listening returns the inode of a line of /proc/net/tcp if it is a socket that listens
// on the port.
func listening(line string, port uint16) string {
	const localAddress, state, inode = 1, 3, 9
	fields := strings.Fields(line)
	if len(fields) <= inode || fields[state] != "0A" { // TCP_LISTEN
		return ""
	}
	_, hex, _ := strings.Cut(fields[localAddress], ":")
	if n, err := strconv.ParseUint(hex, 16, 16); err != nil || uint16(n) != port {
		return ""
	}
	return fields[inode]
}

// bindLate lets the kernel choose the source port at connect, when it knows the
// destination too; else ports would be used up for all destinations at once.
func bindLate(_, _ string, conn syscall.RawConn) error {
	const bindAddressNoPort = 24 // IP_BIND_ADDRESS_NO_PORT, ip(7)
	var failure error
	if err := conn.Control(func(fd uintptr) {
		failure = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, bindAddressNoPort, 1)
	}); err != nil {
		return err
	}
	return failure
}
