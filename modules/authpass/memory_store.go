package authpass

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// maxStoredPasses bounds what a MemoryStore holds: some 200 MB at worst.
const maxStoredPasses = 1 << 20

var errStoreFull = errors.New("it is full")

type digest = [sha256.Size]byte

// MemoryStore is an app.PassStore within this process: its passes are good on this
// instance only and end with it. It does no I/O and owns no goroutine; expired
// passes are forgotten when the next one is put.
type MemoryStore struct {
	capacity int

	mu      sync.Mutex
	passes  map[digest]*storedPass
	expires expiryHeap // the same passes
}

// storedPass is what the store knows of a pass; it does not know the pass.
type storedPass struct {
	digest digest
	grant  app.PassGrant
	index  int // in expires
}

// NewMemoryStore returns an empty store for at most 1,048,576 passes.
func NewMemoryStore() *MemoryStore {
	return &MemoryStore{capacity: maxStoredPasses, passes: make(map[digest]*storedPass)}
}

// Put implements app.PassStore. A full store is unavailable until passes are taken or
// expire.
func (s *MemoryStore) Put(ctx context.Context, pass domain.ConnectionPass, grant app.PassGrant) error {
	if err := ctx.Err(); err != nil {
		return unavailable("the request has ended", err)
	}
	key, now := pass.Digest(), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.expires) > 0 && !now.Before(s.expires[0].grant.PassExpiresAt) {
		s.remove(s.expires[0])
	}
	if known := s.passes[key]; known != nil {
		s.remove(known)
	}
	if !now.Before(grant.PassExpiresAt) {
		return nil
	}
	if len(s.passes) >= s.capacity {
		return unavailable(errStoreFull.Error(), errStoreFull)
	}
	stored := &storedPass{digest: key, grant: grant}
	s.passes[key] = stored
	heap.Push(&s.expires, stored)
	return nil
}

// Take implements app.PassStore.
func (s *MemoryStore) Take(ctx context.Context, pass domain.ConnectionPass) (app.PassGrant, error) {
	if err := ctx.Err(); err != nil {
		return app.PassGrant{}, unavailable("the request has ended", err)
	}
	key := pass.Digest()
	s.mu.Lock()
	defer s.mu.Unlock()
	stored := s.passes[key]
	if stored == nil {
		return app.PassGrant{}, app.ErrPassInvalid
	}
	s.remove(stored)
	if !time.Now().Before(stored.grant.PassExpiresAt) {
		return app.PassGrant{}, app.ErrPassInvalid
	}
	return stored.grant, nil
}

// Available implements app.PassStore; it is always nil.
func (s *MemoryStore) Available() error { return nil }

// Check implements app.PassStore; it is always nil.
func (s *MemoryStore) Check(context.Context) error { return nil }

func (s *MemoryStore) remove(stored *storedPass) {
	delete(s.passes, stored.digest)
	heap.Remove(&s.expires, stored.index)
}

// expiryHeap has the pass that expires first at index 0; see container/heap.
type expiryHeap []*storedPass

func (h expiryHeap) Len() int { return len(h) }

func (h expiryHeap) Less(i, j int) bool {
	return h[i].grant.PassExpiresAt.Before(h[j].grant.PassExpiresAt)
}

func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *expiryHeap) Push(x any) {
	stored := x.(*storedPass)
	stored.index = len(*h)
	*h = append(*h, stored)
}

func (h *expiryHeap) Pop() any {
	last := len(*h) - 1
	stored := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return stored
}
