// theta_j = mu + tau z_j, z_j ~ N(0, 1).
data {
  array[8] real y, scale;
}
parameters {
  real mu;
  real<lower=0> tau;
  vector[8] z;
}
transformed parameters {
  vector[8] theta = mu + tau * z;
}
model {
  mu ~ normal(0, 5);
  tau ~ cauchy(0, 5);
  z ~ std_normal();
  y ~ normal(theta, scale);
}
