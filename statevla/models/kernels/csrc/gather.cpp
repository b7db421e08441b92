// Rows of a large array into a batch, past the caches: a batch of pictures is read once, later, by somebody else, and a
// plain copy would first fetch each line that it is about to overwrite.

#include <cstdint>
#include <cstring>
#if defined(HAVE_X86)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LINE = 64;

#if defined(HAVE_X86)
// As many of the bytes as make whole lines; returns how many. `to` begins at a multiple of 32.
__attribute__((target("avx"))) int64_t stream(const char *from, char *to, int64_t bytes) {
    int64_t whole = bytes / LINE * LINE;
    for (int64_t at = 0; at < whole; at += LINE) {
        __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + at));
        __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + at + LINE / 2));
        _mm256_stream_si256(reinterpret_cast<__m256i *>(to + at), low);
        _mm256_stream_si256(reinterpret_cast<__m256i *>(to + at + LINE / 2), high);
    }
    return whole;
}
#endif

}  // namespace

// out[i] = source[rows[i]] of `bytes` each; returns 1, with nothing written, where a row is not below `height`.
extern "C" __attribute__((visibility("default"))) int statevla_gather(
    const void *source, int64_t height, const int64_t *rows, int64_t count, int64_t bytes, void *out) {
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= height) return 1;
#if defined(HAVE_X86)
    __builtin_cpu_init();
    const bool streams = __builtin_cpu_supports("avx");
#endif
    for (int64_t i = 0; i < count; i++) {
        const char *from = static_cast<const char *>(source) + rows[i] * bytes;
        char *to = static_cast<char *>(out) + i * bytes;
        int64_t done = 0;
#if defined(HAVE_X86)
        if (streams && reinterpret_cast<uintptr_t>(to) % (LINE / 2) == 0) done = stream(from, to, bytes);
#endif
        std::memcpy(to + done, from + done, size_t(bytes - done));
    }
#if defined(HAVE_X86)
    _mm_sfence();  // another thread reads the batch next
#endif
    return 0;
}
