/* A libunwind.a that was compiled for glibc prints its errors by glibc's checked functions, which musl does not
 * have: packaging/build.sh, static_program. */
#include <stdarg.h>
#include <stdio.h>

int __vfprintf_chk(FILE *file, int flag, const char *format, va_list list) {
    (void)flag;
    return vfprintf(file, format, list);
}

int __vsnprintf_chk(char *to, size_t most, int flag, size_t size, const char *format, va_list list) {
    (void)flag;
    (void)size;
    return vsnprintf(to, most, format, list);
}
