"""How good a policy is: offline against demonstrations, in closed loop, and the report that shows both."""
