// The products of linear layers in float16.
#include "linear_products.cuh"

DMAO_LINEAR_PRODUCTS(float16)
