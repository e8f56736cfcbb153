// Percent-encoding of the words of a report, in which "-" stands for an empty one.
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static inline void percent_encode(FILE *stream, const char *text) {
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-~+,:=@";
    bool dash = strcmp(text, "-") == 0;
    for (; *text; text++)
        if (strchr(plain, *text) && !dash)
            fputc(*text, stream);
        else
            fprintf(stream, "%%%02X", (unsigned char)*text);
}
