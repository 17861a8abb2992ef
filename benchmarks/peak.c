/* Measures the multiply-add rate of the processor at register level: the ceiling that kernels are held against.
 *
 * Every loop keeps enough independent accumulators in registers to hide the latency and touches no memory
 * (AMX: eight tiles, loaded once). Prints one JSON object: operations per second of all threads together, a
 * multiply-add counted as two, 0 where the processor lacks the instruction.
 * Usage: peak THREADS SECONDS
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ACCUMULATORS = 12, BLOCK = 20000 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Keeps twelve accumulators of type T in registers and adds products to each: STEP(acc) is one multiply-add.
 * The empty asm makes the compiler keep every step; the stores at the end keep the results alive. */
#define VECTOR_LOOP(NAME, TARGET, T, ZERO, STEP)                                                     \
    __attribute__((target(TARGET))) static void NAME(void *sink) {                                   \
        T a = ZERO, b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;     \
        for (int n = 0; n < BLOCK; n++) {                                                            \
            a = STEP(a), b = STEP(b), c = STEP(c), d = STEP(d), e = STEP(e), f = STEP(f);            \
            g = STEP(g), h = STEP(h), i = STEP(i), j = STEP(j), k = STEP(k), l = STEP(l);            \
            __asm__ volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f));             \
            __asm__ volatile("" : "+v"(g), "+v"(h), "+v"(i), "+v"(j), "+v"(k), "+v"(l));             \
        }                                                                                            \
        T all[ACCUMULATORS] = {a, b, c, d, e, f, g, h, i, j, k, l};                                  \
        for (int n = 0; n < ACCUMULATORS; n++) ((volatile char *)sink)[n] = *(char *)&all[n];        \
    }

#define FMA256(acc) _mm256_fmadd_ps(_mm256_set1_ps(0.5f), _mm256_set1_ps(0.25f), acc)
#define FMA512(acc) _mm512_fmadd_ps(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f), acc)
#define DPBF16(acc) _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi16(0x3f00), (__m512bh)_mm512_set1_epi16(0x3e80))
#define DPBUSD(acc) _mm512_dpbusd_epi32(acc, _mm512_set1_epi8(1), _mm512_set1_epi8(1))

VECTOR_LOOP(float32_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), FMA256)
VECTOR_LOOP(float32_avx512, "avx512f", __m512, _mm512_setzero_ps(), FMA512)
VECTOR_LOOP(bfloat16_avx512, "avx512f,avx512bw,avx512bf16", __m512, _mm512_setzero_ps(), DPBF16)
VECTOR_LOOP(int8_avx512_vnni, "avx512f,avx512bw,avx512vnni", __m512i, _mm512_setzero_si512(), DPBUSD)

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
};

/* Eight full tiles of 16 rows of 64 bytes. Static: the intrinsic does not tell the compiler that it reads it all. */
static const struct tile_config full_tiles = {
    .palette = 1,
    .column_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

#define AMX_TARGET __attribute__((target("amx-tile,amx-bf16,amx-int8")))

AMX_TARGET static void load_zero_tiles(void) {
    _tile_loadconfig(&full_tiles);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
}
AMX_TARGET static void bfloat16_amx(void *sink) {
    (void)sink;
    load_zero_tiles();
    for (int n = 0; n < BLOCK / 4; n++) {
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
AMX_TARGET static void int8_amx(void *sink) {
    (void)sink;
    load_zero_tiles();
    for (int n = 0; n < BLOCK / 4; n++) {
        _tile_dpbusd(0, 4, 6); _tile_dpbusd(1, 4, 7); _tile_dpbusd(2, 5, 6); _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
}

struct job {
    void (*loop)(void *);
    double seconds, rate;
};

static void *run(void *argument) {
    struct job *job = argument;
    char sink[ACCUMULATORS];
    job->loop(sink);
    long rounds = 0;
    double start = now(), elapsed;
    do {
        job->loop(sink);
        rounds++;
    } while ((elapsed = now() - start) < job->seconds);
    job->rate = (double)rounds / elapsed;
    return NULL;
}

/* Returns operations per second of `threads` threads running `loop`, of `work` operations per call. */
static double measure(void (*loop)(void *), double work, int threads, double seconds) {
    pthread_t handles[threads];
    struct job jobs[threads];
    double rate = 0;
    for (int i = 0; i < threads; i++) {
        jobs[i] = (struct job){loop, seconds, 0};
        pthread_create(&handles[i], NULL, run, &jobs[i]);
    }
    for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL), rate += jobs[i].rate;
    return rate * work;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: peak THREADS SECONDS\n"), 2;
    int threads = atoi(argv[1]);
    double seconds = atof(argv[2]);
    double vector = 2.0 * ACCUMULATORS * BLOCK, tile = 2.0 * 16 * 16 * BLOCK;
    enum { XTILEDATA = 18, ARCH_REQ_XCOMP_PERM = 0x1023 };
    int amx = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#define ROW(NAME, HAS, LOOP, WORK, END) printf("\"%s\": %.4g" END, NAME, (HAS) ? measure(LOOP, WORK, threads, seconds) : 0.0)
    printf("{");
    ROW("float32_avx2", __builtin_cpu_supports("fma"), float32_avx2, vector * 8, ", ");
    ROW("float32_avx512", __builtin_cpu_supports("avx512f"), float32_avx512, vector * 16, ", ");
    ROW("bfloat16_avx512", __builtin_cpu_supports("avx512bf16"), bfloat16_avx512, vector * 32, ", ");
    ROW("int8_avx512_vnni", __builtin_cpu_supports("avx512vnni"), int8_avx512_vnni, vector * 64, ", ");
    ROW("bfloat16_amx", amx && __builtin_cpu_supports("amx-bf16"), bfloat16_amx, tile * 32, ", ");
    ROW("int8_amx", amx && __builtin_cpu_supports("amx-int8"), int8_amx, tile * 64, "}\n");
    return 0;
}
