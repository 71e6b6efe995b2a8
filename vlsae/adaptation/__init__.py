"""What adaptation changes in a vision-language model."""
