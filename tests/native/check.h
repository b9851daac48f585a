/*
 * What a C test says when something is not so.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                       \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: in %s: not so: %s\n", __FILE__, __LINE__,      \
				__func__, #condition);                                         \
			exit(1);                                                               \
		}                                                                              \
	} while (0)
#define CHECK_EQUAL(got, wanted)                                                               \
	do {                                                                                   \
		long long got_ = (long long)(got), wanted_ = (long long)(wanted);              \
		if (got_ != wanted_) {                                                         \
			fprintf(stderr, "%s:%d: in %s: %s is %#llx, not %#llx\n", __FILE__,    \
				__LINE__, __func__, #got, got_, wanted_);                      \
			exit(1);                                                               \
		}                                                                              \
	} while (0)

#endif
