// C entry points: picks the instruction set at load time, and runs tasks on the OpenMP pool that PyTorch loaded.
//
// The library links no OpenMP of its own. Python hands over the address of GOMP_parallel from the copy that PyTorch
// uses; without one, tasks run one after another.

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "abi.h"

extern const KernelTable kernels_baseline;
#if defined(HAVE_X86)
extern const KernelTable kernels_avx2, kernels_avx512;
#endif

namespace {

using GompParallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
GompParallel gomp_parallel = nullptr;
std::atomic<bool> out_of_memory{false};

const KernelTable *best() {
#if defined(HAVE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
    return &kernels_baseline;
}

const KernelTable *chosen = best();

struct Job {
    Task task;
    void *context;
    int64_t count;
    std::atomic<int64_t> next{0};
};

void work(void *data) {
    Job *job = static_cast<Job *>(data);
    for (int64_t i = job->next++; i < job->count; i = job->next++) job->task(job->context, i);
}

struct Buffer {
    void *memory = nullptr;
    int64_t bytes = 0;
    ~Buffer() { std::free(memory); }
};
thread_local Buffer buffers[2];

int finish(int status) { return out_of_memory.exchange(false) ? 1 : status; }

}  // namespace

void run_tasks(int64_t threads, int64_t count, Task task, void *context) {
    Job job{task, context, count};
    if (threads > count) threads = count;
    if (threads > 1 && gomp_parallel) gomp_parallel(work, &job, unsigned(threads), 0);
    else work(&job);
}

void *scratch(int slot, int64_t bytes) {
    Buffer &buffer = buffers[slot];
    if (buffer.bytes < bytes) {
        std::free(buffer.memory);
        bytes = (bytes + 4095) & ~int64_t(4095);
        buffer.memory = std::aligned_alloc(64, size_t(bytes));
        buffer.bytes = buffer.memory ? bytes : 0;
        if (!buffer.memory) out_of_memory = true;
    }
    return buffer.memory;
}

#define API extern "C" __attribute__((visibility("default")))

API int64_t statevla_abi_version() { return ABI_VERSION; }
API int64_t statevla_chunk() { return CHUNK; }
API int64_t statevla_sizes(int64_t which) { return which ? int64_t(sizeof(ConvArgs)) : int64_t(sizeof(ScanArgs)); }
API void statevla_use_openmp(void *address) { gomp_parallel = reinterpret_cast<GompParallel>(address); }
API const char *statevla_isa() { return chosen->name; }

// Take another instruction set, for tests and measurements; 1 if this processor or build does not have it.
API int statevla_use_isa(const char *name) {
#if defined(HAVE_X86)
    const KernelTable *ladder[] = {&kernels_baseline, &kernels_avx2, &kernels_avx512};
    for (const KernelTable *table : ladder) {
        if (!std::strcmp(table->name, name)) {
            chosen = table;
            return 0;
        }
        if (table == best()) return 1;
    }
    return 1;
#else
    return std::strcmp(name, "baseline") != 0;
#endif
}

API int statevla_scan_forward(const ScanArgs *args) { return finish(chosen->scan_forward(args)); }
API int statevla_scan_backward(const ScanArgs *args) { return finish(chosen->scan_backward(args)); }
API int statevla_conv_forward(const ConvArgs *args) { return finish(chosen->conv_forward(args)); }
API int statevla_conv_backward(const ConvArgs *args) { return finish(chosen->conv_backward(args)); }
