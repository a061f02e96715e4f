extern "C" {
#define SZ(n) __attribute__((visibility("hidden"))) void __tsan_read##n(void*) {} __attribute__((visibility("hidden"))) void __tsan_write##n(void*) {} __attribute__((visibility("hidden"))) void __tsan_unaligned_read##n(void*) {} __attribute__((visibility("hidden"))) void __tsan_unaligned_write##n(void*) {}
SZ(1) SZ(2) SZ(4) SZ(8) SZ(16)
__attribute__((visibility("hidden"))) void __tsan_init() {}
__attribute__((visibility("hidden"))) void __tsan_func_entry(void*) {}
__attribute__((visibility("hidden"))) void __tsan_func_exit(void*) {}
__attribute__((visibility("hidden"))) void __tsan_read_range(void*, unsigned long) {}
__attribute__((visibility("hidden"))) void __tsan_write_range(void*, unsigned long) {}
__attribute__((visibility("hidden"))) void __tsan_vptr_update(void*, void*) {}
unsigned char __attribute__((visibility("hidden"))) __tsan_atomic8_load(const volatile unsigned char* p, int) { return *p; }
}
