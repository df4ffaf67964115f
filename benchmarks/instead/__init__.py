"""What training a policy costs against what one would use instead, at equal distance from the posterior."""
