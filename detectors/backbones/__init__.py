"""Networks from an image to feature maps at growing strides."""
