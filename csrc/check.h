// The one way to say "[op] expected ..., got ...": GF_CHECK(condition, "op", parts of the message...).
#pragma once
#include <torch/headeronly/util/Exception.h>

#define GF_CHECK(condition, op, ...) STD_TORCH_CHECK(condition, "[" op "] ", __VA_ARGS__)
