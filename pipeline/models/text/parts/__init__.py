"""What text towers share: tokenisers, the halves of image-text models, and their image heads."""
