package main

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzParseUsage: whatever a process is called, and whatever else stands in its files,
// its usage is read as what it is, or not at all.
func FuzzParseUsage(f *testing.F) {
	f.Add("a) b (c", uint32(250), uint32(50), uint32(200), []byte("4711 (a) S 1 4711 4711 0 -1 4194560 5 0 0 0 250 50 7 8"), []byte("1000 200 3"))
	f.Add("", uint32(0), uint32(0), uint32(1), []byte(") Z 1 2 3 4 5 6 7 8 9 10 11 12 13"), []byte("1 9223372036854775807"))
	f.Add("\n", uint32(1), uint32(1<<31), uint32(1<<31), []byte("(x) S 1 2 3 4 5 6 7 8 9 10 -1 x 13"), []byte(""))
	f.Fuzz(func(t *testing.T, name string, user, system, pages uint32, stat, statm []byte) {
		pages = max(pages, 1) // one without memory is ending
		if got, err := parseUsage(stat, statm); err != nil && (!errors.Is(err, errNoProcess) || got != (usage{})) {
			t.Errorf("%q, %q: %+v, %v", stat, statm, got, err)
		}
		line := "1 (" + name + ") S 1 1 1 0 -1 4194560 5 0 0 0 " + strconv.Itoa(int(user)) + " " + strconv.Itoa(int(system)) + " 7 8 20 0 9 0"
		got, err := parseUsage([]byte(line), []byte("1 "+strconv.Itoa(int(pages))+" 3"))
		if want := time.Duration(int64(user)+int64(system)) * 10 * time.Millisecond; err != nil || got.CPU != want || got.RSS%max(int64(pages), 1) != 0 || got.RSS < int64(pages) {
			t.Errorf("%q: %+v, %v, want %s", line, got, err, want)
		}
	})
}

// FuzzListening: a line of the kernel's table is that of a listener on its own port only.
func FuzzListening(f *testing.F) {
	f.Add("   0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 12345 1 0", uint16(8001))
	f.Add("   0: 0100007F:1F41 00000000:0000 01 00000000:00000000 00:00000000 00000000  1000 0 12345 1 0", uint16(8001))
	f.Add("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", uint16(0))
	f.Add("1: :+1 x 0A 4 5 6 7 8 9", uint16(1))
	f.Fuzz(func(t *testing.T, line string, port uint16) {
		inode := listening(line, port)
		if inode == "" {
			return
		}
		fields := strings.Fields(line)
		if inode != fields[9] || fields[3] != "0A" || listening(line, port+1) != "" {
			t.Errorf("%q listens on %d, with the inode %s", line, port, inode)
		}
	})
}
