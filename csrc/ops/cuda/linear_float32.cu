// The products of linear layers in float32, multiplied in TF32.
#include "linear_products.cuh"

DMAO_LINEAR_PRODUCTS(float)
