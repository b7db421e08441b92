// The kernels of one instruction set. Compiled once for each, with -DISA=name and that set's flags.

#include "conv.h"
#include "scan_backward.h"
#include "scan_forward.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#define BY_TYPE(function)                              \
    if (args->io == IO_F32) return function<float>(args); \
    if (args->io == IO_BF16) return function<bf16>(args); \
    return function<double>(args);

namespace {
int scan_forward_any(const ScanArgs *args) { BY_TYPE(scan_forward) }
int scan_backward_any(const ScanArgs *args) { BY_TYPE(scan_backward) }
int conv_forward_any(const ConvArgs *args) { BY_TYPE(conv_forward) }
int conv_backward_any(const ConvArgs *args) { BY_TYPE(conv_backward) }
}  // namespace

extern const KernelTable JOIN(kernels_, ISA);
const KernelTable JOIN(kernels_, ISA) = {TEXT(ISA), scan_forward_any, scan_backward_any, conv_forward_any, conv_backward_any};
