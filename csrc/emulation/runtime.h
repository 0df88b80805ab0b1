// Runs CUDA kernels on the CPU: one fiber per thread, blocks one after the other. What a kernel sees is in cuda.h.
//
// A fiber runs until it waits (at a barrier, at a warp's exchange) or ends. The scheduler is deterministic: seed 0
// takes threads and blocks in order, any other permutes the threads of each round, and an odd one takes the blocks
// backwards. A mistake that the runtime sees ends the process with one line, `file:line: what`.
//
// Under AddressSanitizer it also knows which bytes of shared memory are in bounds, written, or still being copied;
// under ThreadSanitizer every thread is a thread, and only barriers order their accesses. Two rules hold for its own
// code: no sanitizer looks at it (ARTSY_RUNTIME), hence no STL containers, whose out-of-line instances would be looked
// at; and under ThreadSanitizer what one block used (fibers, stacks, shared memory) no later block of the launch uses
// again, since it would take old accesses for the new thread's own. The next launch does: launches are ordered.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <source_location>
#include <type_traits>
#include <vector>

#ifndef __x86_64__
#error "the emulation switches between fibers in x86-64 assembly: no other processor is supported yet"
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
extern "C" void __asan_report_load_n(void*, size_t);
extern "C" void __asan_report_store_n(void*, size_t);
#define ARTSY_IF_ASAN(...) __VA_ARGS__
#else
#define ARTSY_IF_ASAN(...)
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_write_range(void*, size_t);
extern "C" void __tsan_read_range(void*, size_t);
extern "C" void __tsan_func_entry(void*);
extern "C" void __tsan_func_exit();
#define ARTSY_IF_TSAN(...) __VA_ARGS__
#else
#define ARTSY_IF_TSAN(...)
#endif
#define ARTSY_UNSEEN __attribute__((noinline, no_sanitize("address", "thread", "undefined")))
#define ARTSY_RUNTIME inline ARTSY_UNSEEN

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y = 1, z = 1;
};

namespace artsy::emulation {

using Location = std::source_location;

constexpr unsigned kMaxThreads = 1024, kMaxSharedArrays = 64, kMaxCopies = 64;
constexpr size_t kStackBytes = 128 << 10, kPageBytes = 4096, kArenaBytes = 256 << 10, kRedZoneBytes = 64;
constexpr size_t kMaxSharedBytes = 163 << 10;  // sm_80; sm_90 and sm_100 have 227 KiB
constexpr char kRedZoneByte = 0x55;
// Under ThreadSanitizer so many threads of a launch have a home of their own (it knows 8128 at most, and each makes the
// others slower), else those of a block; and so many blocks an arena.
constexpr bool kIsThreadBuild = ARTSY_IF_TSAN(!) false;
constexpr unsigned kMaxHomes = kIsThreadBuild ? 2 * kMaxThreads : kMaxThreads;
constexpr unsigned kMaxArenas = kIsThreadBuild ? kMaxHomes : 1;

enum class State : uint8_t { ready, at_barrier, in_warp, ended };
enum class Exchange : uint8_t { sync, index, up, down, exclusive_or, ballot, match, product };
enum class Barrier : uint8_t { plain, count, all, any };

struct Copy {  // cp.async
  void* to;
  const void* from;  // nullptr writes zeros
  unsigned group;
  Location at;
};

struct Home {  // of a fiber
  char* stack;
  void *stack_pointer, *asan_stack, *tsan;
  // ThreadSanitizer orders by addresses, which are never read. They are those of a home, since one that two blocks
  // share would order the blocks. A fast thread may be at the next barrier before a slow one has left this: they take
  // turns.
  char at_barrier[2], at_warp[2];
};

struct Fiber {
  Home* home;
  uint3 index;
  unsigned rank;
  State state;
  Location at;  // where it waits
  Barrier barrier;
  Exchange exchange;
  unsigned mask, group, syncs, turns;  // turns: a bit per lane of the group, the parity of its syncs
  int argument, width;
  uint64_t given, received;
  unsigned copies, groups;
  Copy copy[kMaxCopies];
};

struct SharedArray {
  const void* key;
  char* data;
  size_t bytes;
  Location at;
};

struct Machine {
  const char* kernel;
  void (*body)(const void*);
  const void* arguments;
  dim3 grid, block;
  uint3 block_index;
  unsigned threads, phase, arrays, homes_used, arenas_used;
  Fiber *current, fiber[kMaxThreads];
  Home home[kMaxHomes];
  unsigned turn[kMaxThreads];
  SharedArray array[kMaxSharedArrays];
  char *arenas[kMaxArenas], *arena, *dynamic;
  size_t arena_used, shared_bytes, dynamic_bytes;
  void *stack_pointer, *asan_stack, *tsan;
  const void* stack;
  size_t stack_bytes;
  uint64_t random;
  char at_start, at_end;      // of a launch, as Home::at_barrier
  char written[kArenaBytes];  // of the arena, under AddressSanitizer
};

inline Machine machine;
inline uint64_t seed = 0;
inline void (*on_launch)(const char* kernel, dim3 grid, dim3 block,
                         size_t dynamic_bytes) = nullptr;  // told each launch
// The blocks that run, of every launch that has them, where not all do; negative ones are counted from the last.
inline std::vector<int64_t> only_blocks;

// --- Diagnostics

ARTSY_RUNTIME bool is_same(Location a, Location b) {
  return a.line() == b.line() && a.column() == b.column() && strcmp(a.file_name(), b.file_name()) == 0;
}

ARTSY_RUNTIME void describe(char* text, size_t size, const Fiber& fiber) {
  static const char* const kStates[] = {"runs", "waits at a barrier", "waits for its warp", "has ended"};
  const int n = snprintf(text, size, "thread (%u, %u, %u) %s", fiber.index.x, fiber.index.y, fiber.index.z,
                         kStates[int(fiber.state)]);
  if (fiber.state != State::ended) snprintf(text + n, size - n, " at %s:%u", fiber.at.file_name(), fiber.at.line());
}

// Ends the process: nothing can be said of a kernel after its first mistake.
[[noreturn]] ARTSY_RUNTIME void fail(Location at, const char* what, const Fiber* one = nullptr,
                                     const Fiber* other = nullptr) {
  char first[512] = "", second[512] = "";
  if (one) describe(first, sizeof first, *one);
  if (other) describe(second, sizeof second, *other);
  const uint3 b = machine.block_index;
  fprintf(stderr, "%s:%u: %s: %s%s%s%s%s [block (%u, %u, %u) of %s]\n", at.file_name(), at.line(), at.function_name(),
          what, one ? ": " : "", first, other ? ", " : "", second, b.x, b.y, b.z, machine.kernel);
  fflush(stderr);
  _Exit(70);
}

// --- Fibers

extern "C" void artsy_switch_stack(void** save, void* load);
asm(R"(
.pushsection .text
.weak artsy_switch_stack
.type artsy_switch_stack, @function
artsy_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size artsy_switch_stack, . - artsy_switch_stack
.popsection
)");

ARTSY_RUNTIME void resume(Fiber& fiber) {
  Machine& m = machine;
  m.current = &fiber;
  ARTSY_IF_ASAN(__sanitizer_start_switch_fiber(&m.asan_stack, fiber.home->stack, kStackBytes);)
  ARTSY_IF_TSAN(__tsan_switch_to_fiber(fiber.home->tsan, __tsan_switch_to_fiber_no_sync);)  // a switch orders nothing
  artsy_switch_stack(&m.stack_pointer, fiber.home->stack_pointer);
  ARTSY_IF_ASAN(__sanitizer_finish_switch_fiber(m.asan_stack, nullptr, nullptr);)
}

ARTSY_RUNTIME void suspend() {
  Machine& m = machine;
  Home& home = *m.current->home;
  ARTSY_IF_ASAN(__sanitizer_start_switch_fiber(&home.asan_stack, m.stack, m.stack_bytes);)
  ARTSY_IF_TSAN(__tsan_switch_to_fiber(m.tsan, __tsan_switch_to_fiber_no_sync);)
  artsy_switch_stack(&home.stack_pointer, m.stack_pointer);
  ARTSY_IF_ASAN(__sanitizer_finish_switch_fiber(home.asan_stack, &m.stack, &m.stack_bytes);)
}

// --- Warps: the last lane to arrive does the exchange for all.

// mma.m16n8k16: what each lane gives. Element i of a fragment (two to a register) lies in the matrices where the PTX
// ISA says ("Matrix fragments for mma.m16n8k16 with floating point type").
struct Fragments {
  float* c;
  const uint32_t *a, *b;
  float (*widen)(uint16_t);

  ARTSY_UNSEEN float number(const uint32_t* registers, int i) const {
    return widen(uint16_t(registers[i / 2] >> (i % 2 * 16)));
  }
};

ARTSY_RUNTIME void multiply_fragments(const Fiber* lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& given = *reinterpret_cast<const Fragments*>(lanes[lane].given);
    const int group = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 8; ++i)
      a[group + (i < 2 || (4 <= i && i < 6) ? 0 : 8)][column + i % 2 + (i < 4 ? 0 : 8)] = given.number(given.a, i);
    for (int i = 0; i < 4; ++i) b[column + i % 2 + (i < 2 ? 0 : 8)][group] = given.number(given.b, i);
    for (int i = 0; i < 4; ++i) c[group + (i < 2 ? 0 : 8)][column + i % 2] = given.c[i];
  }
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < 16; ++k) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      reinterpret_cast<const Fragments*>(lanes[lane].given)->c[i] = c[lane / 4 + (i < 2 ? 0 : 8)][lane % 4 * 2 + i % 2];
}

ARTSY_RUNTIME int source_of(const Fiber& fiber, int lane) {
  const int start = lane & ~(fiber.width - 1), end = start + fiber.width;
  int source = lane;
  if (fiber.exchange == Exchange::index) source = start + (fiber.argument & (fiber.width - 1));
  if (fiber.exchange == Exchange::up) source = lane - fiber.argument;
  if (fiber.exchange == Exchange::down) source = lane + fiber.argument;
  if (fiber.exchange == Exchange::exclusive_or) source = lane ^ fiber.argument;
  const bool is_out = source >= end || (fiber.exchange == Exchange::up && source < start);
  return is_out ? lane : source;
}

ARTSY_RUNTIME void complete_exchanges(unsigned warp) {
  Machine& m = machine;
  Fiber* const lanes = &m.fiber[size_t(warp) * 32];
  const int count = m.threads - warp * 32 < 32 ? int(m.threads - warp * 32) : 32;
  unsigned alive = 0, waiting = 0;
  for (int i = 0; i < count; ++i) {
    if (lanes[i].state != State::ended) alive |= 1u << i;
    if (lanes[i].state == State::in_warp) waiting |= 1u << i;
  }
  for (int i = 0; i < count; ++i) {
    const Fiber& first = lanes[i];
    const unsigned group = first.mask & alive;
    if (first.state != State::in_warp || (waiting & group) != group) continue;
    unsigned votes = 0, turns = 0;
    for (int k = 0; k < count; ++k) {
      if (!(group >> k & 1)) continue;
      const bool is_there = is_same(lanes[k].at, first.at) || first.exchange == Exchange::sync;
      if (lanes[k].mask != first.mask) fail(first.at, "the lanes of a mask name different masks", &first, &lanes[k]);
      if (lanes[k].exchange != first.exchange || !is_there)
        fail(first.at, "the lanes of a mask meet in different exchanges", &first, &lanes[k]);
      if (lanes[k].given) votes |= 1u << k;
      turns |= (lanes[k].syncs & 1) << k;
    }
    if (first.exchange == Exchange::product) {
      if (group != 0xffffffffu) fail(first.at, "mma takes all 32 lanes of a warp", &first);
      multiply_fragments(lanes);
    }
    for (int k = 0; k < count; ++k) {
      if (!(group >> k & 1)) continue;
      Fiber& lane = lanes[k];
      const int source = source_of(lane, k);
      if (!(group >> source & 1))
        fail(lane.at,
             first.mask >> source & 1 ? "shuffle from a lane that has ended"
                                      : "shuffle from a lane that is not in the mask",
             &lane, &lanes[source]);
      lane.received = lane.exchange == Exchange::ballot ? votes : lanes[source].given;
      if (lane.exchange == Exchange::match) {
        lane.received = 0;
        for (int j = 0; j < count; ++j)
          if ((group >> j & 1) && lanes[j].given == lane.given) lane.received |= 1u << j;
      }
    }
    for (int k = 0; k < count; ++k)
      if (group >> k & 1) {
        lanes[k].state = State::ready;
        lanes[k].group = group;
        lanes[k].turns = turns;
      }
    waiting &= ~group;
  }
}

#ifdef __SANITIZE_THREAD__
ARTSY_RUNTIME void acquire_lanes(const Fiber& me) {
  for (unsigned k = 0; k < 32; ++k)
    if (me.group >> k & 1) __tsan_acquire(&machine.fiber[me.rank / 32 * 32 + k].home->at_warp[me.turns >> k & 1]);
}
#endif

ARTSY_RUNTIME uint64_t exchange(Exchange kind, unsigned mask, uint64_t given, int argument, int width, Location at) {
  Machine& m = machine;
  Fiber& me = *m.current;
  const unsigned warp = me.rank / 32, count = m.threads - warp * 32;
  me.at = at;
  if (!(mask >> me.rank % 32 & 1)) fail(at, "the calling lane is not in its own mask", &me);
  if (count < 32 && mask >> count) fail(at, "the mask names lanes that this last, partial warp does not have", &me);
  if (width < 1 || width > 32 || (width & (width - 1))) fail(at, "the width is not 1, 2, 4, 8, 16 or 32", &me);
  me.exchange = kind;
  me.mask = mask;
  me.given = given;
  me.argument = argument;
  me.width = width;
  // Only __syncwarp orders memory; shuffles and votes do not.
  ARTSY_IF_TSAN(if (kind == Exchange::sync) __tsan_release(&me.home->at_warp[++me.syncs & 1]);)
  me.state = State::in_warp;
  complete_exchanges(warp);
  if (me.state != State::ready) suspend();
  ARTSY_IF_TSAN(if (kind == Exchange::sync) acquire_lanes(me);)
  return me.received;
}

template <class T>
uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a lane gives at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T shuffle(Exchange kind, unsigned mask, T value, int argument, int width, Location at) {
  const uint64_t bits = exchange(kind, mask, bits_of(value), argument, width, at);
  T result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// --- Blocks

ARTSY_RUNTIME int barrier(Barrier kind, int given, Location at) {
  Machine& m = machine;
  Fiber& me = *m.current;
  me.state = State::at_barrier;
  me.barrier = kind;
  me.given = given != 0;
  me.at = at;
  ARTSY_IF_TSAN(char* const token = &m.fiber[0].home->at_barrier[m.phase & 1]; __tsan_release(token);)
  suspend();
  ARTSY_IF_TSAN(__tsan_acquire(token);)
  return int(me.received);
}

// No memset: the sanitizers' would count as an access of the calling thread.
ARTSY_RUNTIME void fill(char* data, size_t bytes, int value) {
  for (size_t i = 0; i < bytes; ++i) const_cast<volatile char*>(data)[i] = char(value);
}

// `word` is the size of the array's integers. The first thread that comes to its declaration makes room.
ARTSY_RUNTIME SharedArray& shared_array(const void* key, size_t bytes, size_t word, Location at) {
  Machine& m = machine;
  for (unsigned i = 0; i < m.arrays; ++i)
    if (m.array[i].key == key) return m.array[i];
  const size_t room = (bytes + 63) / 64 * 64 + kRedZoneBytes;
  m.shared_bytes += bytes;
  if (m.shared_bytes > kMaxSharedBytes) fail(at, "a block has at most 163 KiB of shared memory");
  if (m.arrays == kMaxSharedArrays) fail(at, "a block has more shared arrays than the emulation keeps (64)");
  SharedArray& array = m.array[m.arrays++] = {key, m.arena + m.arena_used, bytes, at};
  m.arena_used += room;
  ARTSY_IF_ASAN(ASAN_UNPOISON_MEMORY_REGION(array.data, room); fill(m.written + (array.data - m.arena), bytes, 0);)
  // The largest integer, which overflows when it is added to, or NaN in every floating format.
  fill(array.data, bytes, 0xff);
  for (size_t i = word; i <= bytes; i += word) fill(array.data + i - 1, 1, 0x7f);
  fill(array.data + bytes, room - bytes, kRedZoneByte);
  ARTSY_IF_ASAN(ASAN_POISON_MEMORY_REGION(array.data + bytes, room - bytes);)
  return array;
}

ARTSY_RUNTIME void check_red_zones() {
  const Machine& m = machine;
  for (unsigned i = 0; i < m.arrays; ++i) {
    const SharedArray& array = m.array[i];
    const char* const end = i + 1 < m.arrays ? m.array[i + 1].data : m.arena + m.arena_used;
    for (const char* byte = array.data + array.bytes; byte < end; ++byte)
      if (*byte != kRedZoneByte) fail(array.at, "a thread wrote behind the end of this shared array");
  }
}

// --- cp.async

#ifdef __SANITIZE_THREAD__
// An access that the runtime makes for a kernel, which called from there.
ARTSY_RUNTIME void note_read(const void* from, size_t bytes, void* caller) {
  __tsan_func_entry(caller);
  __tsan_read_range(const_cast<void*>(from), bytes);
  __tsan_func_exit();
}
ARTSY_RUNTIME void note_write(void* to, size_t bytes, void* caller) {
  __tsan_func_entry(caller);
  __tsan_write_range(to, bytes);
  __tsan_func_exit();
}
#endif

ARTSY_RUNTIME void start_copy(void* to, const void* from, Location at) {
  Fiber& me = *machine.current;
  me.at = at;
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
    fail(at, "cp.async between addresses that are not multiples of 16", &me);
  if (me.copies == kMaxCopies) fail(at, "more cp.async on their way than the emulation keeps (64)", &me);
  me.copy[me.copies++] = {to, from, me.groups, at};
  fill(static_cast<char*>(to), 16, 0xff);
  ARTSY_IF_ASAN(ASAN_POISON_MEMORY_REGION(to, 16);)
  ARTSY_IF_TSAN(note_write(to, 16, __builtin_return_address(0));)
}

ARTSY_RUNTIME void close_group() { ++machine.current->groups; }

ARTSY_RUNTIME void finish_copies(unsigned groups_left) {
  Machine& m = machine;
  Fiber& me = *m.current;
  unsigned left = 0;
  for (unsigned i = 0; i < me.copies; ++i) {
    const Copy copy = me.copy[i];
    if (copy.group + groups_left >= me.groups) {
      me.copy[left++] = copy;
      continue;
    }
    ARTSY_IF_ASAN({
      if (copy.from && __asan_region_is_poisoned(const_cast<void*>(copy.from), 16))
        fail(copy.at, "cp.async reads outside of its tensor", &me);
      ASAN_UNPOISON_MEMORY_REGION(copy.to, 16);
      fill(m.written + (static_cast<char*>(copy.to) - m.arena), 16, 1);
    })
    ARTSY_IF_TSAN(if (copy.from) note_read(copy.from, 16, __builtin_return_address(0));)
    ARTSY_IF_TSAN(note_write(copy.to, 16, __builtin_return_address(0));)
    if (copy.from)
      memcpy(copy.to, copy.from, 16);
    else
      memset(copy.to, 0, 16);
  }
  me.copies = left;
}

#ifdef __SANITIZE_ADDRESS__
// --- Every load and store of a kernel comes by here (the compiler calls these names, which stand before the
// library's).

ARTSY_RUNTIME void access(void* address, size_t bytes, bool is_store) {
  Machine& m = machine;
  const size_t at = size_t(static_cast<char*>(address) - m.arena);
  if (__asan_region_is_poisoned(address, bytes)) {
    if (is_store)
      __asan_report_store_n(address, bytes);
    else
      __asan_report_load_n(address, bytes);
  } else if (m.arena && at < kArenaBytes) {
    for (size_t i = at; i < at + bytes; ++i) {
      if (!is_store && !m.written[i]) {
        __sanitizer_print_stack_trace();
        fail(m.current->at, "read of shared memory that no thread has written; the thread last waited here", m.current);
      }
      m.written[i] = 1;
    }
  }
}
}  // namespace artsy::emulation
#define ARTSY_HOOK(name, is_store, bytes, ...)                                                   \
  extern "C" ARTSY_RUNTIME __attribute__((used)) void __asan_##name(void* address __VA_ARGS__) { \
    artsy::emulation::access(address, bytes, is_store);                                          \
  }
ARTSY_HOOK(load1, false, 1)
ARTSY_HOOK(load2, false, 2)
ARTSY_HOOK(load4, false, 4)
ARTSY_HOOK(load8, false, 8)
ARTSY_HOOK(load16, false, 16)
ARTSY_HOOK(loadN, false, bytes, , size_t bytes)
ARTSY_HOOK(store1, true, 1)
ARTSY_HOOK(store2, true, 2)
ARTSY_HOOK(store4, true, 4)
ARTSY_HOOK(store8, true, 8)
ARTSY_HOOK(store16, true, 16)
ARTSY_HOOK(storeN, true, bytes, , size_t bytes)
namespace artsy::emulation {
#endif

// --- The life of a thread, a block, a launch

ARTSY_RUNTIME void thread_main() {
  Machine& m = machine;
  ARTSY_IF_ASAN(__sanitizer_finish_switch_fiber(nullptr, &m.stack, &m.stack_bytes);)
  for (;;) {
    ARTSY_IF_TSAN(__tsan_acquire(&m.at_start);)
    m.body(m.arguments);
    ARTSY_IF_TSAN(__tsan_release(&m.at_end);)
    Fiber& me = *m.current;
    if (me.copies) fail(me.copy[0].at, "the thread ended before it waited for this cp.async", &me);
    me.state = State::ended;
    complete_exchanges(me.rank / 32);
    suspend();
  }
}

ARTSY_RUNTIME char* map_memory(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  return static_cast<char*>(memory);
}

ARTSY_RUNTIME Home& next_home() {
  Machine& m = machine;
  Home& home = m.home[m.homes_used++];
  if (!home.stack) {
    char* const guard = map_memory(kPageBytes + kStackBytes);
    mprotect(guard, kPageBytes, PROT_NONE);
    home.stack = guard + kPageBytes;
    void** top = reinterpret_cast<void**>(home.stack + kStackBytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&thread_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that artsy_switch_stack takes
    home.stack_pointer = top;
    ARTSY_IF_TSAN(home.tsan = __tsan_create_fiber(0);)
  }
  return home;
}

ARTSY_RUNTIME void start_block() {
  Machine& m = machine;
  if (m.arenas_used == kMaxArenas || m.homes_used + m.threads > kMaxHomes) {
    ARTSY_IF_TSAN(__tsan_acquire(&m.at_end);)  // the threads so far come before the next, as if this were a new launch
    m.homes_used = m.arenas_used = 0;
  }
  char*& arena = m.arenas[m.arenas_used++];
  if (!arena) arena = map_memory(kArenaBytes);
  m.arena = arena;
  m.arena_used = m.shared_bytes = m.arrays = 0;
  ARTSY_IF_ASAN(ASAN_POISON_MEMORY_REGION(m.arena, kArenaBytes);)
  for (unsigned i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fiber[i];
    fiber.home = &next_home();
    fiber.rank = i;
    fiber.index = {i % m.block.x, i / m.block.x % m.block.y, i / (m.block.x * m.block.y)};
    fiber.state = State::ready;
    fiber.at = Location();
    fiber.copies = fiber.groups = 0;
  }
  ARTSY_IF_TSAN(__tsan_release(&m.at_start);)
}

// All threads that can run have run: releases a barrier, or says why nothing moves. False where the block has ended.
ARTSY_RUNTIME bool release_barrier() {
  Machine& m = machine;
  const Fiber *stuck = nullptr, *first = nullptr, *other = nullptr;
  unsigned ended = 0, votes = 0;
  for (unsigned i = 0; i < m.threads; ++i) {
    const Fiber& fiber = m.fiber[i];
    if (fiber.state == State::ended)
      ++ended;
    else if (fiber.state == State::in_warp)
      stuck = stuck ? stuck : &fiber;
    else if (!first)
      first = &fiber;
    if (fiber.state == State::at_barrier) votes += unsigned(fiber.given);
  }
  if (ended == m.threads) return false;
  for (unsigned i = 0; i < m.threads && !other; ++i) {
    const Fiber& fiber = m.fiber[i];
    const bool is_named = stuck && fiber.rank / 32 == stuck->rank / 32 && (stuck->mask >> fiber.rank % 32 & 1);
    const bool is_there = stuck ? fiber.state == State::in_warp && is_same(fiber.at, stuck->at)
                                : fiber.state == State::at_barrier && is_same(fiber.at, first->at);
    if (!is_there && (is_named || !stuck)) other = &fiber;
  }
  if (stuck) fail(stuck->at, "dead-lock: a lane of the mask never comes", stuck, other);
  if (other) fail(first->at, "divergent barrier: not all threads of the block are at it", first, other);
  ++m.phase;
  for (unsigned i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fiber[i];
    fiber.state = State::ready;
    fiber.received = fiber.barrier == Barrier::count ? votes
                     : fiber.barrier == Barrier::all ? votes == m.threads
                                                     : votes > 0;
  }
  return true;
}

ARTSY_RUNTIME void run_block(int64_t b) {
  Machine& m = machine;
  m.block_index = {unsigned(b % m.grid.x), unsigned(b / m.grid.x % m.grid.y), unsigned(b / m.grid.x / m.grid.y)};
  start_block();
  if (m.dynamic_bytes) m.dynamic = shared_array(&m.dynamic, m.dynamic_bytes, 8, Location::current()).data;
  do {
    for (bool ran = true; ran;) {
      ran = false;
      for (unsigned i = m.threads; seed && i > 1; --i) {
        m.random = m.random * 6364136223846793005u + 1442695040888963407u;
        const unsigned k = unsigned((m.random >> 33) % i), turn = m.turn[i - 1];
        m.turn[i - 1] = m.turn[k];
        m.turn[k] = turn;
      }
      for (unsigned i = 0; i < m.threads; ++i) {
        Fiber& fiber = m.fiber[m.turn[i]];
        if (fiber.state != State::ready) continue;
        resume(fiber);
        ran = true;
      }
    }
  } while (release_barrier());
  ARTSY_IF_ASAN(if (false)) check_red_zones();
}

// Runs a kernel: body(arguments) once per thread. The launch has been checked against CUDA's limits.
ARTSY_RUNTIME void run(const char* kernel, dim3 grid, dim3 block, size_t dynamic_bytes, void (*body)(const void*),
                       const void* arguments) {
  Machine& m = machine;
  if (on_launch) on_launch(kernel, grid, block, dynamic_bytes);
  m.kernel = kernel;
  m.body = body;
  m.arguments = arguments;
  m.grid = grid;
  m.block = block;
  m.threads = block.x * block.y * block.z;
  m.dynamic_bytes = dynamic_bytes;
  m.random = seed;
  m.homes_used = m.arenas_used = 0;
  for (unsigned i = 0; i < m.threads; ++i) m.turn[i] = i;
  ARTSY_IF_TSAN(m.tsan = __tsan_get_current_fiber();)
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  if (only_blocks.empty()) {
    for (int64_t i = 0; i < blocks; ++i) run_block(seed & 1 ? blocks - 1 - i : i);
  } else {
    std::set<int64_t> chosen;  // each once
    for (const int64_t b : only_blocks)
      if (-blocks <= b && b < blocks) chosen.insert(b < 0 ? blocks + b : b);
    for (const int64_t b : chosen) run_block(b);
  }
  ARTSY_IF_TSAN(__tsan_acquire(&m.at_end);)
}

}  // namespace artsy::emulation
