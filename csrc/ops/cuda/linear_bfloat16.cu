// The products of linear layers in bfloat16.
#include "linear_products.cuh"

DMAO_LINEAR_PRODUCTS(bfloat16)
