/* What a program that runs packed networks includes; link libsbnn.a (make kernels-arm). examples/run.c shows its use. */
#ifndef SBNN_H
#define SBNN_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#include "kernels.h"
#ifdef __cplusplus
}
#endif
#endif
