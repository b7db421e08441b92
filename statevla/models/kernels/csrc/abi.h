// What Python and the kernels agree on: plain structs of pointers, element strides and sizes.
// `native.py` mirrors the two structs field by field; ABI_VERSION changes with them and with the entry points.
//
// Letters: B batch, L time steps, E inner channels, N states a channel, K taps.
// A tensor `x` of shape [B L width] comes as x, x_b, x_t: pointer, strides of B and L; the last stride is 1.
// "io" is the tensors' type; "acc" is double for double io, float otherwise.

#pragma once
#include <cstdint>

constexpr int64_t ABI_VERSION = 2;

// Steps between two kept states. The backward pass recomputes the states of one such chunk at a time.
constexpr int64_t CHUNK = 16;

enum IoType : int64_t { IO_F32 = 0, IO_BF16 = 1, IO_F64 = 2 };

struct ScanArgs {
    int64_t io, threads, B, L, E, N;
    const void *u; int64_t u_b, u_t;        // io [B L E]
    const void *dt; int64_t dt_b, dt_t;     // io [B L E], before bias and softplus
    const void *z; int64_t z_b, z_t;        // io [B L E], gate
    const void *b; int64_t b_b, b_t;        // io [B L N]
    const void *c; int64_t c_b, c_t;        // io [B L N]
    const void *dt_bias;                    // acc [E]
    const void *a;                          // acc [E N]
    const void *d;                          // acc [E]
    const void *h0;                         // acc [B E N] or null: zeros
    void *h_last;                           // acc [B E N] or null
    void *kept;                             // acc [B ceil(L/CHUNK) N E], states before each chunk, or null
    void *out; int64_t out_b, out_t;        // io [B L E]
    // backward only
    const void *dout; int64_t dout_b, dout_t;    // io [B L E]
    const void *dh_last;                         // acc [B E N] or null: zeros
    void *du; int64_t du_b, du_t;                // io [B L E]
    void *ddt; int64_t ddt_b, ddt_t;             // io [B L E]
    void *dz; int64_t dz_b, dz_t;                // io [B L E]
    void *db; int64_t db_b, db_t;                // io [B L N]
    void *dc; int64_t dc_b, dc_t;                // io [B L N]
    void *ddt_bias;                              // acc [E]
    void *da;                                    // acc [E N]
    void *dd;                                    // acc [E]
    void *dh0;                                   // acc [B E N] or null
};

struct ConvArgs {
    int64_t io, threads, B, L, E, K;
    const void *x; int64_t x_b, x_t;        // io [B L E]
    const void *weight;                     // acc [E K]
    const void *bias;                       // acc [E]
    void *out; int64_t out_b, out_t;        // io [B L E]
    // backward only
    const void *dout; int64_t dout_b, dout_t;    // io [B L E]
    void *dx; int64_t dx_b, dx_t;                // io [B L E]
    void *dweight;                               // acc [E K]
    void *dbias;                                 // acc [E]
};

// One instruction set's kernels. All return 0, or 1 when memory ran out.
struct KernelTable {
    const char *name;
    int (*scan_forward)(const ScanArgs *);
    int (*scan_backward)(const ScanArgs *);
    int (*conv_forward)(const ConvArgs *);
    int (*conv_backward)(const ConvArgs *);
};

// Runs task(context, i) for i in [0, count) on up to `threads` threads of PyTorch's own OpenMP pool.
using Task = void (*)(void *context, int64_t index);
void run_tasks(int64_t threads, int64_t count, Task task, void *context);

// 64-byte aligned memory that stays with the thread and grows as needed; null when memory ran out.
// Slot 0 belongs to the calling thread's shared buffers, slot 1 to a task.
void *scratch(int slot, int64_t bytes);
