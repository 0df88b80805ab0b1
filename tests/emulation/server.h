// Runs the exported functions of csrc on the CPU, one request after the other, over stdin and stdout: emulator.py is
// the other end. A process of its own, because a kernel's first mistake ends it, and because a sanitizer wants to be
// there from the start.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/port.cuh"

namespace server {

inline void read(void* data, size_t bytes) {
  if (bytes && fread(data, 1, bytes, stdin) != bytes) exit(0);  // the other end has gone
}
template <class T>
T read() {
  T value;
  read(&value, sizeof value);
  return value;
}
inline std::string read_text() {
  std::string text(read<uint64_t>(), '\0');
  read(text.data(), text.size());
  return text;
}
template <class T>
void write(T value) {
  fwrite(&value, 1, sizeof value, stdout);
}
inline void write_text(const std::string& text) {
  write(uint64_t(text.size()));
  fwrite(text.data(), 1, text.size(), stdout);
}

// A tensor's memory: exactly as long, so that a sanitizer knows its end, and aligned as it came.
struct Buffer {
  void* block;
  char* data;
  size_t bytes;
  bool is_output;
};

struct Call {
  int64_t result = 0;
  std::vector<Buffer> buffers;

  ~Call() {
    for (const Buffer& buffer : buffers) free(buffer.block);
  }

  template <class T>
  T argument() {
    if constexpr (std::is_same_v<T, cudaStream_t>)
      return nullptr;
    else if constexpr (std::is_pointer_v<T>)
      return static_cast<T>(buffer(!std::is_const_v<std::remove_pointer_t<T>>));
    else if constexpr (std::is_floating_point_v<T>)
      return T(read<double>());
    else
      return T(read<int64_t>());
  }

 private:
  void* buffer(bool is_output) {
    const auto bytes = read<uint64_t>(), offset = read<uint64_t>();  // the address, modulo the alignment of memory
    if (bytes == 0) return nullptr;
    Buffer buffer = {nullptr, nullptr, bytes, is_output};
    if (posix_memalign(&buffer.block, 256, offset + bytes)) abort();
    buffer.data = static_cast<char*>(buffer.block) + offset;
    read(buffer.data, bytes);
    buffers.push_back(buffer);
    return buffer.data;
  }
};

using Function = void (*)(Call&);
inline std::map<std::string, Function>& functions() {
  static std::map<std::string, Function> all;
  return all;
}

template <auto function, class Result, class... Arguments>
void invoke(Call& call, Result (*)(Arguments...)) {
  std::tuple<Arguments...> arguments{call.argument<Arguments>()...};  // in braces: from the first to the last
  if constexpr (std::is_void_v<Result>)
    std::apply(function, arguments);
  else
    call.result = int64_t(std::apply(function, arguments));
}

struct Export {
  Export(const char* name, Function function) { functions()[name] = function; }
};

inline std::string launched;  // the launches of this call: kernel, blocks, threads, bytes of dynamic shared memory

// Without a sanitizer an access far outside is a signal: say whose.
inline void report_segmentation_fault() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  static char memory[64 << 10];  // the thread's own stack may be what has overflowed
  const stack_t stack = {memory, 0, sizeof memory};
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_flags = SA_ONSTACK;
  action.sa_handler = [](int) {
    using namespace artsy::emulation;
    if (!machine.current) _exit(70);
    fail(machine.current->at, "segmentation fault; the thread last waited here", machine.current);
  };
  sigaction(SIGSEGV, &action, nullptr);
#endif
}

inline int run() {
  report_segmentation_fault();
  artsy::emulation::on_launch = [](const char* kernel, dim3 grid, dim3 block, size_t dynamic_bytes) {
    launched += kernel;
    for (const size_t number : {size_t(grid.x), size_t(grid.y), size_t(grid.z), size_t(block.x), size_t(block.y),
                                size_t(block.z), dynamic_bytes})
      (launched += '\t') += std::to_string(number);
    launched += '\n';
  };
  for (;;) {
    const auto function = functions().find(read_text());
    artsy::emulation::seed = read<uint64_t>();
    artsy::emulation::only_blocks.clear();
    launched.clear();
    std::string error;
    Call call;
    alarm(120);  // a thread that waits in a loop would never let the others run
    try {
      if (function == functions().end()) throw std::runtime_error("no such function");
      function->second(call);
    } catch (const std::exception& exception) {
      error = exception.what();
    }
    alarm(0);
    write_text(error);
    write_text(launched);
    write(call.result);
    for (const Buffer& buffer : call.buffers) {
      write(uint64_t(buffer.is_output ? buffer.bytes : 0));
      if (buffer.is_output) fwrite(buffer.data, 1, buffer.bytes, stdout);
    }
    fflush(stdout);
  }
}

}  // namespace server

// EMULATED(name, function): the function, with its template arguments, as emulator.py calls it.
#define EMULATED(name, ...)                  \
  static const server::Export export_##name( \
      #name, [](server::Call& call) { server::invoke<&__VA_ARGS__>(call, &__VA_ARGS__); });

int main() { return server::run(); }
