// y ~ N(0, D L L' D), D = diag(scale), L L' ~ LKJ(2); rho its entries below the diagonal.
data {
  int n;
  array[n] vector[3] y;
}
parameters {
  vector<lower=0>[3] scale;
  cholesky_factor_corr[3] factor;
}
model {
  scale ~ lognormal(0, 1);
  factor ~ lkj_corr_cholesky(2);
  y ~ multi_normal_cholesky(rep_vector(0, 3), diag_pre_multiply(scale, factor));
}
generated quantities {
  vector[3] rho;
  {
    matrix[3, 3] r = multiply_lower_tri_self_transpose(factor);
    rho = [r[2, 1], r[3, 1], r[3, 2]]';
  }
}
