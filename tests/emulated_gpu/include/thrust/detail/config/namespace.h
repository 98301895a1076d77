// CuPy's complex numbers want of Thrust the name of its namespace; Thrust's own header wants all of CUDA's.
#define THRUST_NAMESPACE_BEGIN namespace thrust {
#define THRUST_NAMESPACE_END }
