// Ends what begin.h begins. GCC keeps the target to the end of the file, where it instantiates templates.
#if defined(__clang__) && defined(__x86_64__) && defined(FUSED_BN_TARGET)
#pragma clang attribute pop
#endif
