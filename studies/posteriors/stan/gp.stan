// A Gaussian process of 15 values, its function integrated out.
data {
  int n;
  array[n] real x;
  vector[n] y;
}
parameters {
  real<lower=0> rho, alpha, sigma;
}
model {
  rho ~ gamma(25, 4);
  alpha ~ normal(0, 2);
  sigma ~ normal(0, 1);
  matrix[n, n] cov = add_diag(gp_exp_quad_cov(x, alpha, rho), square(sigma));
  y ~ multi_normal_cholesky(rep_vector(0, n), cholesky_decompose(cov));
}
