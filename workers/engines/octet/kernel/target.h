// The instructions that the functions between OCTET_TARGET and OCTET_TARGET_END may use, whatever the build's flags are.
#pragma once

#define OCTET_PRAGMA(text) _Pragma(#text)
#if defined(OCTET_EMULATED)  // by tests, of instructions that are not here
#define OCTET_TARGET(features) _Pragma("GCC push_options") OCTET_PRAGMA(GCC target("avx2,fma,f16c"))
#define OCTET_TARGET_END _Pragma("GCC pop_options")
#elif defined(__clang__)
#define OCTET_TARGET(features) OCTET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define OCTET_TARGET_END OCTET_PRAGMA(clang attribute pop)
#else
#define OCTET_TARGET(features) _Pragma("GCC push_options") OCTET_PRAGMA(GCC target(features))
#define OCTET_TARGET_END _Pragma("GCC pop_options")
#endif
