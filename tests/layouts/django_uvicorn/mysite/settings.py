SECRET_KEY = "for tests alone"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
INTERNAL_IPS = ["127.0.0.1"]
