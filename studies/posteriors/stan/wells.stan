// y ~ Bernoulli(logit^-1 x beta), beta flat.
data {
  int n;
  matrix[n, 3] x;
  array[n] int y;
}
parameters {
  vector[3] beta;
}
model {
  y ~ bernoulli_logit(x * beta);
}
