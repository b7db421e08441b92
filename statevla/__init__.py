"""StateVLA: small vision-language-action policies trained from precomputed stores."""

__version__ = "0.1.0"
